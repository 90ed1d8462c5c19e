"""The documentation site: `nox -s docs` builds it; every warning is an error, and every tutorial is run."""

from __future__ import annotations

from typing import Any

import hpf_gpu

REPOSITORY = "https://github.com/hpf-gpu/hpf_gpu"

project = "hpf_gpu"
version = release = hpf_gpu.__version__
copyright = "the hpf_gpu developers"
html_title = "hpf_gpu"

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "github_url": REPOSITORY,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False

# Tutorials are Markdown notebooks: run at every build, and a failing cell fails it.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc has them
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True


def _link_to_repository(app: Any, name: str, source: list[str]) -> None:
    """Links to files outside this folder, which are read on GitHub as well, lead there."""
    if "/" not in name:
        source[0] = source[0].replace("](../", f"]({REPOSITORY}/blob/main/")


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("source-read", _link_to_repository)
