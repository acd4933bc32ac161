"""Build a wheel of Theano 1.0.5 from its published source (PEP 517).

Nothing of Theano lies here. pip fetches the source from wherever it gets
packages, and compares its SHA-256. Python 3.12 removed two names that Theano's
``setup.py`` uses; processes that run it find them in ``stand_ins``.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import outer

REQUIREMENT = "Theano==1.0.5"
SHA256 = "6e9439dd53ba995fcae27bf20626074bfc2fff446899dc5c53cb28c1f9202e89"
STAND_INS = Path(__file__).resolve().with_name("stand_ins")


def get_requires_for_build_wheel(config_settings=None):
    """Ask for pip where there is none, as in environments of uv."""
    return [] if _pip() else ["pip"]


def build_wheel(wheel_directory, config_settings=None,
                metadata_directory=None):
    """Build the wheel, which also tells pip what Theano requires."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder, "wheels")
        lines = Path(folder, "requirements.txt")
        lines.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        process = _run_pip(wheels, "--no-binary", "Theano", "--require-hashes",
                           "--requirement", str(lines))
        # A folder of the user's may have the wheel instead of the source.
        if process.returncode and _run_pip(
                wheels, "--no-index", "--only-binary", "Theano", REQUIREMENT
                ).returncode:
            print(process.stdout.rstrip())
            sys.exit(_words_for(process.stdout))
        wheel, = wheels.glob("*.whl")
        shutil.copy(str(wheel), wheel_directory)
        return wheel.name


def _pip():
    """Find what runs pip: a module, or the folder of pip, which runs too."""
    if importlib.util.find_spec("pip"):
        return ["-m", "pip"]
    # The environment that pip makes for a build hides the pip outside.
    folder = os.path.join(sysconfig.get_path("purelib"), "pip")
    return [folder] if os.path.exists(folder) else None


def _run_pip(wheels, *arguments):
    return subprocess.run(
        [sys.executable, *_pip(), "wheel", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(wheels), *outer.options(), *arguments],
        cwd=outer.folder(), env=_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")


def _environment():
    # Such a variable, of whatever full name, is about this very backend.
    env = {name: value for name, value in os.environ.items()
           if "_BACKEND_PATH" not in name}
    env["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(STAND_INS), env.get("PYTHONPATH")]))
    # Python is not to import what lies in the folder where it starts.
    env["PYTHONSAFEPATH"] = "1"
    return env


def _words_for(output):
    errors = re.findall(r"^ *(?:ERROR|error): (.*)", output, re.M)
    return (f"bnlasagne needs {REQUIREMENT}, but pip could not build it from "
            f"its source: {(errors or ['see above'])[0]}. Where pip reaches "
            "no index, set PIP_FIND_LINKS=/folder/of/Theano-1.0.5.tar.gz, or "
            "PIP_INDEX_URL=https://an/index/that/has/it")
