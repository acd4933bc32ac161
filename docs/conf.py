"""Build the pages and the API reference with Sphinx: `make docs`."""

import re

import bnlasagne

project = "bnlasagne"
author = "the bnlasagne developers"
release = bnlasagne.__version__

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
exclude_patterns = ["conf*.py"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# Layers list their own members only: Lasagne documents its own.
numpydoc_show_class_members = False

html_theme = "alabaster"
html_theme_options = {
    "description": "Batch normalization for Lasagne",
    "page_width": "1100px",
    "sidebar_width": "240px",
}
html_show_copyright = False
html_show_sourcelink = False


def name_files(app, page, source):
    """Show links to files outside of docs/ as paths: the site has only docs."""
    source[0] = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"`\1`", source[0])


def setup(app):
    app.connect("source-read", name_files)
