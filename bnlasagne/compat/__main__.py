"""Install what the repaired stack needs: python -m bnlasagne.compat install.

Where Theano is missing, bnlasagne cannot be imported, and :func:`check` of
``versions.py`` does the same before this module is found.
"""

import sys

from .install import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
