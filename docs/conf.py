"""Sphinx configuration."""

project = "arlat"
author = "the arlat developers"
copyright = "the arlat developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "arlat"
myst_enable_extensions = ["dollarmath", "colon_fence"]
napoleon_use_ivar = True
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["autosectionlabel.*"]
