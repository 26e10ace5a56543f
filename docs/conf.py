"""Settings of the documentation site: ``make docs`` builds it into ``docs/_build``, without a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import vlad  # noqa: E402

project = "vlad"
author = "The vlad authors"
copyright = "2026, the vlad authors"
release = version = vlad.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "site_pages",  # site_pages.py beside this file: pages of data sets, cards of methods
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

# Markdown
myst_heading_anchors = 3
nb_execution_mode = "cache"  # notebooks hold no outputs: they are executed when they have changed
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_output_stderr = "remove"

# API
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Page
html_theme = "furo"
html_title = f"vlad {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7a1f5c", "color-brand-content": "#7a1f5c"},
    "dark_css_variables": {"color-brand-primary": "#f2a65a", "color-brand-content": "#f2a65a"},
}
