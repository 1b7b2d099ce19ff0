"""Sphinx configuration. Everything is local: no intersphinx, nothing fetched."""

import os

import fptt_plugin

# Networks in the tutorials are small: one thread is faster than several, and the figures do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "fptt_plugin"
author = "The fptt_plugin developers"
project_copyright = author
release = version = fptt_plugin.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = [
    "_build",
    "jupyter_execute",
    "performance/*",
    "results/*",
    "versions/*",
]  # tables that pages include
html_theme = "furo"
html_title = f"fptt_plugin {release}"

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # notices of other packages; what a page wants to show, it prints

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Args sections say what is what
