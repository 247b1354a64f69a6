"""Sphinx configuration: MyST Markdown and the theme furo; `make docs` treats warnings as errors."""

from importlib.metadata import version as installed_version

project = "camkd"
author = "the camkd authors"
copyright = "the camkd authors, Apache-2.0"
release = version = installed_version("camkd")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # torch and numpy types are not linked: no inventory is downloaded

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
napoleon_use_ivar = True  # a field of a NamedTuple is documented once
default_role = "literal"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"camkd {release}"


def literal_formulas(app, what, name, obj, options, lines):
    """Render an indented block after a paragraph as a literal block: the formulas in docstrings have no ``::``."""
    for index in range(len(lines) - 2, 0, -1):
        paragraph, blank, block = lines[index - 1 : index + 2]
        is_paragraph = paragraph and not paragraph.startswith((" ", "-", "..")) and not paragraph.endswith("::")
        if is_paragraph and not blank.strip() and block.startswith("    "):
            lines[index:index] = ["", "::"]


def setup(app):
    app.connect("autodoc-process-docstring", literal_formulas, priority=100)  # before napoleon
