"""What processes do that have no MPI, or no other ranks."""

import pickle
import sys

from bnlasagne import BatchNormLayer, world
from bnlasagne.parallel.channel import channel_of_world

import pytest

LAUNCHED = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


@pytest.fixture
def mpi4py(tmp_path, monkeypatch):
    """Installs an mpi4py of the given source code for a test."""
    def install(code):
        package = tmp_path / "mpi4py"
        package.mkdir()
        (package / "__init__.py").write_text("", encoding="utf-8")
        (package / "MPI.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules
                 if name.split(".")[0] == "mpi4py"]:
        monkeypatch.delitem(sys.modules, name)
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    yield install
    for name in "mpi4py", "mpi4py.MPI":
        sys.modules.pop(name, None)


@pytest.mark.parametrize("code, found", [
    ("raise OSError('libmpi.so.12: not found')", "OSError: libmpi.so.12"),
    ("raise RuntimeError('no\\n  library')", "RuntimeError: no library"),
    ("import absent_module", "ModuleNotFoundError: No module named 'absent_m"),
    ("raise SystemError('two MPIs')", "SystemError: two MPIs"),
    ("", "AttributeError: "),
    ("1 / 0", "ZeroDivisionError: "),
])
def test_mpi4py_that_does_not_work(mpi4py, code, found):
    mpi4py(code)
    for _ in range(2):
        with pytest.raises(ImportError, match=(
                r"mpi4py cannot be imported \(.*" + found)) as raised:
            world()
        assert 'pip install "bnlasagne[mpi]"' in str(raised.value)
        assert raised.value.name == "mpi4py"


def test_a_communicator_without_mpi4py(mpi4py):
    mpi4py("")
    with pytest.raises(TypeError, match="comm must be None or a communicator"):
        BatchNormLayer((None, 3), comm=object())
    sys.modules["mpi4py.MPI"] = None
    with pytest.raises(TypeError, match="comm must be None or a communicator"):
        BatchNormLayer((None, 3), comm=object())


class _OfTheWorld(object):
    def __reduce__(self):
        return channel_of_world, ()


def saved():
    """A network as ranks pickle it."""
    layer = BatchNormLayer((None, 3), name="bn")
    layer.channel = _OfTheWorld()
    return pickle.dumps(layer)


def test_loaded_without_mpi4py(mpi4py):
    mpi4py("raise OSError('libmpi.so.12: not found')")
    with pytest.warns(UserWarning, match=(
            r"(?s)comm=world\(\).*as with one rank.*pip install")):
        layer = pickle.loads(saved())
    assert layer.channel is None
    assert layer.name == "bn"


@pytest.mark.parametrize("launched", LAUNCHED)
def test_loaded_by_a_rank_without_mpi4py(mpi4py, monkeypatch, launched):
    """It would not meet the other ranks."""
    monkeypatch.setenv(launched, "0")
    mpi4py("raise OSError('libmpi.so.12: not found')")
    with pytest.raises(ImportError, match="pip install"):
        pickle.loads(saved())


def test_loaded_by_one_process():
    try:
        world()
    except ImportError as error:
        pytest.skip(str(error))
    assert pickle.loads(saved()).channel is None
