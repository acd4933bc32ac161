"""Programs that start a Python of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_python(code, *path, **environment):
    """Run code with folders put first in sys.path; the finished process."""
    # Without the hook that may be installed, unless a test is about it.
    environment = dict(os.environ, **dict(
        {"BNLASAGNE_NO_HOOK": "1"}, **environment))
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=str(path[0]),  # which -c puts before PYTHONPATH
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=300,
    )


def succeed(process):
    assert process.returncode == 0, process.stderr
    return process.stdout
