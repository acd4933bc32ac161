"""Find the options of the pip or uv that runs a build."""

import argparse
import os

__all__ = ["folder", "options"]

# Both programs have these; some names are those of uv alone.
_FLAGS = ["--no-index", "--no-cache-dir"]
_WITH_VALUE = {
    "--index-url": ["-i", "--pypi-url", "--default-index"],
    "--extra-index-url": ["--index"],
    "--find-links": ["-f"],
    "--trusted-host": ["--allow-insecure-host"],
    "--proxy": [],
    "--cert": [],
    "--client-cert": [],
    "--timeout": [],
    "--retries": [],
}


def options():
    """Read the options that say where packages come from, and write pip's.

    An option on the command line of pip reaches no build backend, unlike
    pip's configuration and environment variables. Only Linux tells it.
    """
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")[:-1]
        found = vars(_parser().parse_known_args(words)[0])
    except (OSError, SystemExit):  # an option without its value
        return []
    return [*(name for name in _FLAGS if found[name]),
            *(f"{name}={value}" for name in _WITH_VALUE
              for value in found[name] or ())]


def folder():
    """Find the folder that relative paths among the options start from."""
    link = f"/proc/{os.getppid()}/cwd"
    return link if os.access(link, os.X_OK) else None


def _parser():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _FLAGS:
        parser.add_argument(name, dest=name, action="store_true")
    for name, others in _WITH_VALUE.items():
        parser.add_argument(name, *others, dest=name, action="append")
    return parser
