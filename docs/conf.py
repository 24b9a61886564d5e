"""The manual: `sphinx-build -W --keep-going -n docs build/site`.

Pages are those that GitHub shows, too; what they link to outside of this folder (scripts,
notebooks) becomes pages of the site in `_ext/site.py`. Nothing is fetched: references to other
libraries stay plain text.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from daskdmed import __version__  # noqa: E402

project = "daskdmed"
author = "daskdmed developers"
project_copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "repository",
    "names",
    "shown",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_ext", "_templates"]
templates_path = ["_templates"]

# names in docstrings stand between single backticks; which of them must exist, says _ext/names.py
default_role = "py:obj"
nitpicky = True
autosummary_generate = True
# a file of its own where file names differ in case only
autosummary_filename_map = {
    "daskdmed.inference.metrics.Confusion": "daskdmed.inference.metrics.Confusion-class"
}
autodoc_member_order = "bysource"
# types stand in the docstrings, in words
autodoc_typehints = "none"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# CI executes the notebooks in its tests and shows what came out (DASKDMED_NOTEBOOKS, a folder)
nb_execution_mode = "force" if os.environ.get("DASKDMED_DOCS_EXECUTE") else "off"
nb_execution_timeout = -1
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = f"daskdmed {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "daskdmed"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
