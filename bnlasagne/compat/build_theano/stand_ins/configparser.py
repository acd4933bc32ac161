"""Stand in for Python's module, with two names that Python 3.12 removed.

Processes import it that have this folder in PYTHONPATH: those that run the
``setup.py`` of Theano.
"""

import os as _os
import sysconfig as _sysconfig

_path = _os.path.join(_sysconfig.get_path("stdlib"), "configparser.py")
with open(_path, encoding="utf-8") as _file:
    exec(compile(_file.read(), _path, "exec"))

if "SafeConfigParser" not in globals():
    SafeConfigParser = ConfigParser  # noqa: F821
if not hasattr(RawConfigParser, "readfp"):  # noqa: F821
    RawConfigParser.readfp = RawConfigParser.read_file  # noqa: F821
