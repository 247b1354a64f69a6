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
default_role = "literal"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"camkd {release}"
