"""What .ci/venv says where it finds no Python to work with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "venv"

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not shutil.which("sh"), reason="needs a shell")


def write_python(folder, version):
    """An interpreter that has a version, and nothing else."""
    path = folder / ("python" + version)
    path.write_text(
        "#!/bin/sh\n"
        'case "$2" in\n'
        "*platform*) echo 'is Python {}';;\n"
        "*) exit 1;;\n"
        "esac\n".format(version))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version, says", [
    ("3.7.2", "{} is Python 3.7.2. Needed is 3.8 to 3.13"),
    (None, "{} does not run. Needed is 3.8 to 3.13"),
])
def test_message_for_a_python_that_does_not_do(tmp_path, version, says):
    (tmp_path / ".ci").mkdir()
    shutil.copy(str(SCRIPT), str(tmp_path / ".ci"))
    python = tmp_path / "absent" if version is None else write_python(
        tmp_path, version)
    process = subprocess.run(
        ["sh", str(tmp_path / ".ci" / "venv"), "examples"],
        env=dict(os.environ, PYTHON=str(python)), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, universal_newlines=True, timeout=60)
    assert process.returncode == 1
    message = process.stdout
    assert message.startswith("PYTHON=" + says.format(python))
    assert "pyenv install 3.13" in message
    assert message.count("\n") == 1
