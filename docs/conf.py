"""Configuration of the site: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "anncoder"
author = "The anncoder developers"
copyright = author
version = release = installed("anncoder")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    # ours, of docs/_ext
    "api_pages",
    "cli_page",
    "docstring_types",
    "notebook_pages",
]
if "READTHEDOCS" in os.environ:  # the only place where a build may ask the network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "torch": ("https://pytorch.org/docs/stable/", None),
    }

exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # autosummary writes the first

nb_execution_mode = "off"  # notebooks are stored with their outputs; tests run them
nb_merge_streams = True
smartquotes = False  # quotes are of code, nearly all of them
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

nitpicky = True
nitpick_ignore_regex = [
    # inventories of others are read where the network is; here their names are text
    (r"py:.*", r"(adata|anndata|numpy|pandas|scipy|torch|matplotlib)\b.*"),
    # modules behind the public names: named for those who read the sources, where they are
    (r"py:.*", r"anncoder\.(nn|training|likelihoods|evaluation|reporting|dynamics|data|io)\..*"),
]

autodoc_typehints = "none"  # types stand with the parameters: docstring_types
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = "anncoder"
html_static_path = ["_static"]
html_css_files = ["anncoder.css"]
html_favicon = "_static/mark.svg"
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"which-model": [], "changelog": []}
html_theme_options = {
    "logo": {"text": "anncoder", "image_light": "_static/mark.svg", "image_dark": "_static/mark.svg"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
