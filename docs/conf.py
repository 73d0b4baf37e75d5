"""Sphinx: builds the site from these pages, the docstrings, the notebooks of examples/ and the results of benchmarks/.

`make docs` builds it into docs/_build/html, with every warning an error. What is made on the way (pictures, notebooks, the
table of speed) is made anew from its source at every build and not committed.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs"
MADE = HERE / "_generated"
sys.path[:0] = [str(ROOT), str(HERE)]
import notebooks  # noqa: E402
import pictures  # noqa: E402
import torch  # noqa: E402

from benchmarks import table  # noqa: E402

NOTEBOOKS = ("reverse_half", "gru_by_hand", "manual_loop", "four_layers", "padding")

project = "birnn_ext"
author = "the authors of birnn_ext"
copyright = f"2026, {author}"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"birnn_ext {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00798c", "color-brand-content": "#00798c"},
    "dark_css_variables": {"color-brand-primary": "#4fb3bf", "color-brand-content": "#4fb3bf"},
}
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False


def make_sources():
    """Pictures, table and notebooks, from what is in the repository."""
    pictures.main(MADE)
    (MADE / "table.md").write_text(table.block(table.load()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers
    for name in NOTEBOOKS:
        with torch.random.fork_rng(), torch.enable_grad():
            page = notebooks.render(ROOT / "examples" / f"{name}.py")
        target = HERE / "explained" / f"{name}.md"
        if not target.exists() or target.read_text() != page:  # an untouched file is not read again by Sphinx
            target.write_text(page)
    torch.set_num_threads(threads)


make_sources()
