"""Remember what the C++ compiler answered Theano when it was asked before.

At each start Theano asks it for the flags of this processor, and has it
compile several programs to find a BLAS. An answer is kept together with a
digest of all that it depends on: the compiler and its linker, flags and
environment variables, the processor, and the libraries that are to be linked.
On other systems than Linux, Theano asks as ever. This goes with Theano 1.0.5.
"""

import functools
import os
import shutil
import sys
import sysconfig

# Not `from . import`: see __init__.py.
from .kept import answers, digest, keep

__all__ = ["remember_march_flags", "remember_trials"]

_FILE = "answers"
# Trials that are about the compiler and the linked libraries only.
_TRIALS = ("try_blas_", "check_beta_")
_ENVIRONMENT = (
    "CCC_OVERRIDE_OPTIONS", "COMPILER_PATH", "CPATH", "CPLUS_INCLUDE_PATH",
    "GCC_EXEC_PREFIX", "LD_LIBRARY_PATH", "LD_PRELOAD", "LD_RUN_PATH",
    "LIBRARY_PATH",
)
_CPUINFO = "/proc/cpuinfo"
# Its lines that tell processors apart, of x86 and of ARM.
_PROCESSOR = (
    "vendor_id", "cpu family", "model", "stepping", "cache size", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part",
    "CPU revision", "Features",
)


def remember_march_flags(cmodule):
    """Let Theano know the flags of this processor without asking."""
    compiler = cmodule.GCC_compiler
    ask = compiler.compile_args
    if not _is_known_system():
        return

    @functools.wraps(ask)
    def compile_args(march_flags=True):
        if not march_flags or compiler.march_flags is not None:
            return ask(march_flags)
        key = _key(cmodule, "march", cmodule.config.gcc.cxxflags)
        flags = compiler.march_flags = _recalled(key)
        arguments = ask(march_flags)
        if flags is None:
            _keep(key, compiler.march_flags)
        return arguments

    compiler.compile_args = staticmethod(compile_args)


def remember_trials(cmodule):
    """Let Theano know without a trial which libraries it can link."""
    compiler = cmodule.GCC_compiler
    ask = compiler.try_compile_tmp
    if not _is_known_system():
        return

    @functools.wraps(ask)
    def try_compile_tmp(src_code, tmp_prefix="", flags=(), try_run=False,
                        output=False, comp_args=True):
        question = src_code, tmp_prefix, flags, try_run, output, comp_args
        if tmp_prefix not in _TRIALS or output or not cmodule.config.cxx:
            return ask(*question)
        key = _key_of_trial(cmodule, question)
        answer = _recalled(key)
        if answer is None:
            answer = ask(*question)
            _keep(key, answer)
        return answer if answer is False else tuple(answer)

    compiler.try_compile_tmp = staticmethod(try_compile_tmp)


def _recalled(key):
    answer = answers(_FILE).get(key)
    return answer if isinstance(answer, list) else None


def _keep(key, answer):
    # Where there are no flags for the processor, Theano may have warned, and
    # is to warn again.
    if key and answer:
        keep(_FILE, key, answer)


def _is_known_system():
    return sys.platform.startswith("linux")


def _key_of_trial(cmodule, question):
    """Return the digest of a trial and all that it depends on, or None."""
    source, _, flags, try_run, _, with_arguments = question
    compiler = cmodule.GCC_compiler
    flags = [*(compiler.compile_args() if with_arguments else ()), *flags]
    libraries = _libraries(cmodule, flags)
    if libraries is None:
        return None
    return _key(cmodule, source, try_run, flags, libraries)


def _key(cmodule, *question):
    """Return the digest of a question, or None on an unknown processor."""
    processor = _processor()
    if not processor:
        return None
    return digest(question, processor, _compiler(cmodule))


def _processor():
    """Read what kinds of cores this machine has; nothing if it is unknown."""
    try:
        with open(_CPUINFO, encoding="utf-8") as file:
            lines = {" ".join(line.split()) for line in file
                     if line.split(":")[0].strip() in _PROCESSOR}
    except (OSError, ValueError):
        return []
    known = any(line.startswith(("flags :", "Features :")) for line in lines)
    return sorted(lines) if known else []


def _compiler(cmodule):
    """Return what identifies the compiler, and what sets it."""
    programs = [cmodule.config.cxx, "as", "ld"]
    return [cmodule.GCC_compiler.version_str(),
            [_file(shutil.which(program) or program) for program in programs],
            [os.environ.get(name) for name in _ENVIRONMENT]]


def _libraries(cmodule, flags):
    """Return what identifies the libraries that flags ask for.

    Installed, removed or changed, they make it another question. None if it is
    not known where they are searched for.
    """
    searched = _search_folders(cmodule)
    if not searched:
        return None
    folders = [flag[2:] for flag in flags if flag.startswith("-L")] + searched
    for name in ("LIBRARY_PATH", "LD_LIBRARY_PATH"):
        folders += os.environ.get(name, "").split(os.pathsep)
    names = [f"lib{flag[2:]}{end}" for flag in flags if flag.startswith("-l")
             for end in (".so", ".a")]
    files = [_file(os.path.join(folder, name))
             for folder in filter(None, folders) for name in names]
    # The loader's list of libraries changes with them.
    return [_file("/etc/ld.so.cache"), *(file for file in files if file[1:])]


def _search_folders(cmodule):
    """List the folders where the compiler's linker searches; none if unknown.
    """
    key = _key(cmodule, "folders")
    folders = _recalled(key)
    if folders is None:
        try:
            out, _, _ = cmodule.output_subprocess_Popen(
                [cmodule.config.cxx, "-print-search-dirs"])
        except OSError:
            return []
        lines = out.decode("utf-8", "replace").splitlines()
        folders = [folder for line in lines if line.startswith("libraries: =")
                   for folder in line.split("=", 1)[1].split(os.pathsep)]
        _keep(key, folders)
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    return folders and [*folders, f"/usr/local/lib/{multiarch}",
                        "/usr/local/lib", "/usr/local/lib64", "/lib64",
                        "/usr/lib64"]


def _file(path):
    """Return what identifies a file: its path, and unless missing, more."""
    try:
        status = os.stat(path)
    except OSError:
        return [path]
    return [path, status.st_size, status.st_mtime_ns]
