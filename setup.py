"""Package metadata; `pip install .` installs everything that is needed."""

import io
import re
from functools import partial
from pathlib import Path

from setuptools import Distribution, find_packages, setup

# After setuptools, which brings its own.
from distutils.command.install_data import install_data  # isort: skip

HERE = Path(__file__).resolve().parent


def read(name):
    path = HERE / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def version():
    # Read rather than imported: importing needs what pip is to install.
    source = read("bnlasagne/__init__.py")
    return re.search(r"^__version__ = ['\"](.+)['\"]", source, re.M).group(1)


# Python reads it at its start if it lies beside the installed packages; it
# names the module start_bnlasagne.
HOOK = "start_bnlasagne.pth"


def write_dynamic(write_pkg_file, file):
    """Name a field as uv does, for which others are not dynamic."""
    text = io.StringIO()
    write_pkg_file(text)
    file.write(text.getvalue().replace(
        "\nDynamic: requires-dist\n", "\nDynamic: Requires-Dist\n"))


class DistributionWithHook(Distribution):
    """Has the command install_data run, and uv ask for the requirements."""

    def __init__(self, attrs=None):
        super().__init__(attrs)
        self.metadata.write_pkg_file = partial(
            write_dynamic, self.metadata.write_pkg_file)

    def has_data_files(self):
        return True

    # Asked for by editable installs.
    has_data = has_data_files


class InstallHook(install_data):
    """Part of `pip install .` and of `pip install --editable .`."""

    def run(self):
        super().run()
        folder = self.get_finalized_command("install").install_lib
        self.outfiles.append(self.copy_file(HOOK, folder)[0])


# bnlasagne/compat names these in its messages.
requirements = [
    # The last release; older ones fail on Python >= 3.9.
    "Theano==1.0.5",
    # Its development version, 0.2.dev1, works as well. PyPI has 0.1 only.
    "Lasagne>=0.1",
    # The first with wheels for Python 3.8. SciPy is what Theano needs.
    "numpy>=1.17.3,<3",
    "scipy>=1.3.2",
    "packaging",
]
plot = [
    # The first in which tight_layout() causes no warning.
    "matplotlib>=3.4",
]
mpi = [
    # The first that lets communicators keep what belongs to them, on all the
    # Pythons above.
    "mpi4py>=4",
    # An MPI library in a wheel, and mpiexec. mpi4py finds it by itself, unless
    # another MPI comes first.
    'mpich; sys_platform == "linux" or sys_platform == "darwin"',
]
examples = [
    *plot,
    "pillow",
    "platformdirs",
    "tqdm",
]
# Of the benchmarks.
report = [
    "tabulate>=0.9",
]
test = [
    "pytest>=7",
    "pytest-cov",
    "pytest-xdist",
    "hypothesis>=6",
    # The first that makes wheels by itself: tests build some.
    "setuptools>=70.1",
    # Pinned: each release of ruff may find more.
    "ruff==0.17.6",
    *examples,  # the tests run them
    *report,
    *mpi,
]
# Pinned: it is what the benchmarks are about. No wheels for older Pythons.
torch = 'torch==2.13.0; python_version >= "3.10"'
# The first with a reference evaluator.
onnx = "onnx>=1.13"
bench = [
    torch,
    # Pinned as well.
    'onnxruntime==1.32.0; python_version >= "3.11"',
    onnx,
    # oneDNN's own primitive, with the OpenMP of GCC.
    *(f"{name}==2023.2.0; sys_platform == 'linux' and "
      "platform_machine == 'x86_64'"
      for name in ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")),
    *examples,  # one of them is measured
    *report,
    *mpi,
]
# What weights are exchanged with; tests that need them skip without.
frameworks = [
    torch,
    onnx,
    # On PyTorch as well. Older ones need TensorFlow.
    'keras>=3; python_version >= "3.11"',
    *test,
]
# Old enough for Python 3.8.
docs = [
    "sphinx>=7",
    "numpydoc>=1.7",
    "myst-parser>=3",
]

setup(
    name="bnlasagne",
    version=version(),
    description="Batch normalization for Lasagne, as one drop-in layer",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="The bnlasagne developers",
    license="MIT",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.8",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["bnlasagne", "bnlasagne.*"]),
    py_modules=["start_bnlasagne"],
    package_data={
        "bnlasagne.kernels": ["cpp/*.h"],
        "bnlasagne.compat": [
            "*.h", "build_theano/*.*", "build_theano/stand_ins/*.py"],
    },
    data_files=[],
    distclass=DistributionWithHook,
    cmdclass={"install_data": InstallHook},
    python_requires=">=3.8",
    # For later Pythons, build_backend.py names a folder that builds Theano.
    install_requires=[
        requirements[0] + '; python_version < "3.12"', *requirements[1:],
    ],
    extras_require={
        "plot": plot, "mpi": mpi, "examples": examples, "test": test,
        "bench": bench, "frameworks": frameworks, "docs": docs,
    },
)
