"""Build the pages and the API reference with Sphinx: `make docs`."""

import re

import bnlasagne

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "bnlasagne"
author = "the bnlasagne developers"
release = bnlasagne.__version__

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
exclude_patterns = ["conf*.py"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Each class names its members in api.md.
numpydoc_show_class_members = False
# One line as a summary, with a verb first and a period; parameters that exist.
numpydoc_validation_checks = {"SS03", "SS05", "SS06", "PR02", "PR03", "PR10"}

html_theme = "alabaster"
html_theme_options = {
    "description": "Batch normalization for Lasagne",
    # Wide enough for code of 120 columns.
    "page_width": "1280px",
    "body_max_width": "auto",
    "sidebar_width": "240px",
    "code_font_size": "13px",
}
html_math_renderer = "mathml"
html_show_copyright = False
html_show_sourcelink = False


def name_files(app, page, source):
    """Show links to files outside of docs/ as paths: they are not built."""
    source[0] = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"`\1`", source[0])


def show_math(translator, node):
    """Write MathML, which browsers show without scripts from elsewhere."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), block))
    raise nodes.SkipNode


def setup(app):
    app.connect("source-read", name_files)
    app.add_html_math_renderer(
        "mathml", (show_math, None), (show_math, None))
