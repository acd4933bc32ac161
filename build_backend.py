"""Build bnlasagne with setuptools, and have pip install Theano beside it.

From Python 3.12 on, the source of Theano 1.0.5 cannot be built as it is. The
folder ``bnlasagne/compat/build_theano`` builds it, so the metadata that pip
asks for first require that folder of this very clone or archive. The wheel
does not: somebody may install it when the path is gone. PEP 517 wants both
metadata to be the same, but neither pip nor uv compares them.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable", "build_sdist", "build_wheel",
    "get_requires_for_build_sdist", "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

BUILD_THEANO = Path(__file__).resolve().parent.joinpath(
    "bnlasagne", "compat", "build_theano")


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    """Write the metadata that pip finds out from what else to install."""
    with _writing_elsewhere():
        name = build_meta.prepare_metadata_for_build_wheel(
            metadata_directory, config_settings)
    if sys.version_info >= (3, 12):
        path = Path(metadata_directory, name, "METADATA")
        head, text = path.read_text("utf-8").split("\n\n", 1)
        path.write_text(f"{head}\nRequires-Dist: Theano @ "
                        f"{BUILD_THEANO.as_uri()}\n\n{text}", "utf-8")
    return name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(wheel_directory, config_settings=None,
                metadata_directory=None):
    """Build the wheel, with metadata of its own."""
    with _writing_elsewhere():
        return build_meta.build_wheel(wheel_directory, config_settings)


def build_editable(wheel_directory, config_settings=None,
                   metadata_directory=None):
    """Build the wheel that refers to this folder, likewise."""
    with _writing_elsewhere():
        return build_meta.build_editable(wheel_directory, config_settings)


@contextlib.contextmanager
def _writing_elsewhere():
    """Have setuptools write no file into this folder, which may be read-only.

    Nor do files that an earlier build has left there get into a wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "setup.cfg")
        config.write_text(f"[egg_info]\negg_base={folder}\n"
                          f"[build]\nbuild_base={folder}\n", "utf-8")
        os.environ["DIST_EXTRA_CONFIG"] = str(config)
        yield
