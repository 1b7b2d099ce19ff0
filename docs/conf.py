"""Sphinx configuration. A build fetches nothing: formulas are MathML, inventories of other projects lie here."""

import os
import sys
from pathlib import Path

import fptt_plugin

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
import local_inventories

# Networks in the tutorials are small: one thread is faster than several, and the figures do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "fptt_plugin"
author = "The fptt_plugin developers"
project_copyright = author
release = version = fptt_plugin.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "code_blocks",
    "descriptions",
    "mathml",
    "units",
]
exclude_patterns = ["_build", "jupyter_execute", "performance/*", "results/*", "versions/*", "reference.md"]
nitpicky = True  # a type or name without a page is a warning, but for protocols of the inside
nitpick_ignore = [("py:class", "fptt_plugin.fit.metrics.StatefulMetric"), ("py:class", "fptt_plugin.tree.Packing")]

html_theme = "furo"
html_title = f"fptt_plugin {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False  # the pages with code have notebooks to download

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # for work on the layout: sphinx-build -D nb_execution_mode=off
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds for a cell: a machine may be busy
nb_execution_show_tb = True
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # the lexer of a notebook's cells is known once it has run
nb_output_stderr = "remove"  # notices of other packages; what a page wants to show, it prints

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    "Decay": "fptt_plugin.neurons.Decay",
    "KernelSize": "fptt_plugin.neurons.KernelSize",
    "LossFunction": "fptt_plugin.training.LossFunction",
    "Output": "fptt_plugin.training.Output",
    "Ramp": "fptt_plugin.training.Ramp",
    "Trainer": "fptt_plugin.FPTTTrainer",  # the protocol of which the loops over epochs use a part
}
strip_signature_backslash = True  # or "input_" is shown as "input", without its type
intersphinx_mapping = local_inventories.mapping()
