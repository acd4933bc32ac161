"""Questions to the C++ compiler that need not be asked again."""

import os
import types

from bnlasagne.compat import compiler, kept

import pytest
import theano
from helpers.common import needs_compiler
from helpers.programs import ROOT, run_python, succeed

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/cpuinfo"), reason="needs Linux")

FLAGS = ["-march=znver3", "--param", "l1-cache-size=32"]
BLAS = "try_blas_"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "_path", tmp_path.joinpath)
    processor = ["model : 17", "flags : fpu avx2"]
    monkeypatch.setattr(compiler, "_processor", lambda: processor)
    return tmp_path


class FakeCompiler:
    """As Theano's, but answers at once, and counts the questions."""

    march_flags = None
    answer = True, False
    asked = 0
    cxxflags = ""
    version = "12"

    @classmethod
    def version_str(cls):
        return cls.version

    @classmethod
    def compile_args(cls, march_flags=True):
        if march_flags and cls.march_flags is None:
            cls.asked += 1
            cls.march_flags = list(FLAGS)
        return [cls.cxxflags, *(cls.march_flags if march_flags else ())]

    @classmethod
    def try_compile_tmp(cls, *question):
        cls.asked += 1
        return cls.answer


@pytest.fixture
def start(folder):
    """Starts Theano's module of compilers; returns it and its compiler."""
    path = folder / "g++"
    path.write_text("g++")

    def run(cxx=str(path), **settings):
        fake = type("Fake", (FakeCompiler,), settings)
        module = types.SimpleNamespace(
            GCC_compiler=fake,
            output_subprocess_Popen=lambda command: (
                b"libraries: =%s:/nowhere\n" % bytes(folder), b"", 0),
            config=types.SimpleNamespace(
                cxx=cxx, gcc=types.SimpleNamespace(cxxflags=fake.cxxflags)))
        compiler.remember_march_flags(module)
        compiler.remember_trials(module)
        return fake
    return run


def test_flags_of_the_processor_are_asked_for_once(start):
    for expected in (1, 0):
        fake = start()
        assert fake.compile_args(march_flags=False) == [""]
        assert fake.asked == 0
        for _ in range(2):
            assert fake.compile_args() == ["", *FLAGS]
        assert fake.asked == expected


def test_no_flags_are_not_kept(start, monkeypatch):
    monkeypatch.setattr(FakeCompiler, "compile_args", lambda march: [])
    start().compile_args()
    assert not kept.answers("answers")


def trial(fake, flags=("-lblas",), prefix=BLAS):
    asked = fake.asked
    result = fake.try_compile_tmp("int main() {}", prefix, list(flags), True)
    return result, fake.asked - asked


@pytest.mark.parametrize("answer", [(True, True), (True, False),
                                    (False, False)])
def test_a_trial_is_made_once(start, answer):
    assert trial(start(march_flags=[], answer=answer)) == (answer, 1)
    fake = start(march_flags=[], answer=None)
    assert trial(fake) == (answer, 0)
    fake.answer = True
    assert trial(fake, prefix="try_flags_") == (True, 1)


def test_without_a_compiler_nothing_is_asked(start):
    assert trial(start("", march_flags=[], answer=False))[0] is False
    assert not kept.answers("answers")


@pytest.fixture
def answered(start):
    fake = start()
    assert asked_anew(fake) == (1, 1)


def asked_anew(fake):
    return fake.compile_args() and fake.asked, trial(fake)[1]


@pytest.mark.usefixtures("answered")
class TestAskedAnew:
    def test_not_at_all(self, start):
        assert asked_anew(start()) == (0, 0)

    def test_for_another_processor(self, start, monkeypatch):
        # As where machines share a home directory.
        processor = ["model : 17", "flags : fpu avx2 avx512f"]
        monkeypatch.setattr(compiler, "_processor", lambda: processor)
        assert asked_anew(start()) == (1, 1)

    def test_for_an_unknown_processor(self, start, monkeypatch):
        monkeypatch.setattr(compiler, "_processor", list)
        for _ in range(2):
            assert asked_anew(start()) == (1, 1)

    def test_for_another_version(self, start):
        assert asked_anew(start(version="13")) == (1, 1)

    def test_after_an_update_of_the_compiler(self, start, folder):
        (folder / "g++").write_text("newer g++")
        assert asked_anew(start()) == (1, 1)

    def test_with_the_users_flags(self, start):
        assert asked_anew(start(cxxflags="-O2")) == (1, 1)

    @pytest.mark.parametrize("name", ["LIBRARY_PATH", "COMPILER_PATH"])
    def test_in_another_environment(self, start, monkeypatch, name):
        monkeypatch.setenv(name, "/elsewhere")
        assert asked_anew(start()) == (1, 1)

    @pytest.mark.parametrize("name", ["libblas.so", "libblas.a"])
    def test_after_a_library_was_installed(self, start, folder, name):
        for change in ("BLAS", "newer BLAS"):
            (folder / name).write_text(change)
            assert asked_anew(start()) == (0, 1)
            assert asked_anew(start()) == (0, 0)
        (folder / name).unlink()
        assert asked_anew(start()) == (0, 0)

    def test_with_another_folder(self, start, folder):
        (folder / "mine").mkdir()
        (folder / "mine" / "libblas.so").write_text("BLAS")
        flags = [f"-L{folder}/mine", "-lblas"]
        assert trial(start(), flags)[1] == 1
        (folder / "mine" / "libblas.so").write_text("newer BLAS")
        assert trial(start(), flags)[1] == 1

    def test_if_the_file_is_broken(self, start, folder):
        for text in ("{", "[]", (folder / "answers").read_text().replace(
                "[", "{").replace("]", "}")):
            (folder / "answers").write_text(text)
            assert asked_anew(start()) == (1, 1)


def test_where_libraries_are_searched_for_is_unknown(start, monkeypatch):
    monkeypatch.setattr(compiler, "_search_folders", lambda cmodule: [])
    for expected in (2, 1):  # With the flags of the processor, once.
        assert trial(start())[1] == expected


def test_the_file_does_not_grow_for_ever(folder):
    for number in range(100):
        kept.keep("answers", str(number), [number])
    assert list(kept.answers("answers"))[-1] == "99"
    assert len(kept.answers("answers")) == kept._MOST


@pytest.mark.parametrize("lines, known", [
    ("processor\t: 0\nflags\t\t: fpu avx2\ncpu MHz\t: 2600\n",
     ["flags : fpu avx2"]),
    ("CPU part\t: 0xd0c\nFeatures\t: asimd\nCPU part\t: 0xd0d\n",
     ["CPU part : 0xd0c", "CPU part : 0xd0d", "Features : asimd"]),
    ("cpu : POWER9\n", []),
])
def test_what_tells_processors_apart(monkeypatch, tmp_path, lines, known):
    (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(compiler, "_CPUINFO", str(tmp_path / "cpuinfo"))
    assert compiler._processor() == known


SHOW = """
import bnlasagne.compat
import theano
from theano.gof.cmodule import GCC_compiler
print(GCC_compiler.compile_args(), theano.config.blas.ldflags)
"""


@needs_compiler
def test_a_second_process_does_not_ask(tmp_path):
    log, cxx = tmp_path / "log", tmp_path / "g++"
    cxx.write_text(f'#!/bin/sh\necho "$@" >> {log}\n'
                   f'exec {theano.config.cxx} "$@"\n')
    cxx.chmod(0o755)
    flags = f"base_compiledir={tmp_path},cxx={cxx}"

    def run(**environment):
        out = succeed(run_python(SHOW, ROOT, THEANO_FLAGS=flags,
                                 THEANORC=os.devnull, **environment))
        asked = log.read_text()
        log.unlink()
        return out, asked

    first, asked = run()
    assert "-march=native" in asked and "try_blas_" in asked
    assert run() == (first, "-dumpversion\n")
    # Switched off, the repairs change no answer.
    off = {"BNLASAGNE_NO_REPAIR": "remember_march_flags, remember_trials"}
    second, asked = run(**off)
    assert second == first
    assert "-march=native" in asked and "try_blas_" in asked
