"""Run a Theano function with the Ops of the package under valgrind.

Python itself has findings of its own: only those count whose stack goes
through a module that Theano has compiled.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

__all__ = ["check"]

STEPS = Path(__file__).resolve().parent / "steps.py"
# What valgrind knows of AVX ends there.
FLAGS = "-march=haswell"


def check(folder):
    """Return the kinds and the places of what valgrind has found."""
    if shutil.which("valgrind") is None:
        return ["valgrind is missing; --without-valgrind leaves it out"]
    compiled, report = folder / "compiled", folder / "valgrind.xml"
    command = [sys.executable, str(STEPS)]
    environment = {
        **os.environ, "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1",
        "THEANO_FLAGS": f"base_compiledir={compiled},gcc.cxxflags={FLAGS}"}
    # Compiles; takes much longer under valgrind.
    subprocess.run([*command, "1"], env=environment, check=True)
    subprocess.run(
        ["valgrind", "--leak-check=full", "--show-leak-kinds=definite",
         "--num-callers=40", "--xml=yes", f"--xml-file={report}",
         *command, "30"], env=environment, check=True)
    found = list(findings(report, str(compiled)))
    print(f"valgrind: {len(found)} findings in compiled modules", flush=True)
    return found


def findings(report, folder):
    """Yield the findings with a compiled module on their stack."""
    for error in xml.etree.ElementTree.parse(report).iter("error"):
        frames = [frame for frame in error.find("stack").iter("frame")
                  if (frame.findtext("obj") or "").startswith(folder)]
        if frames:
            yield error.findtext("kind"), [
                (frame.findtext("fn"), frame.findtext("line"))
                for frame in frames]
