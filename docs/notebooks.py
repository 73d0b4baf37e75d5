"""Runs a notebook in percent format and writes it, with what it prints, as Markdown for the site.

The notebooks of examples/ are plain Python files whose cells begin with "# %%" or "# %% [markdown]", as Jupytext and most
editors know them. Running them here in one process needs no Jupyter, and an exception in a cell ends the build.
"""

import contextlib
import io
import re
from pathlib import Path

CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n(?P<body>.*?)(?=^# %%|\Z)", re.MULTILINE | re.DOTALL)


def render(path):
    """The notebook at `path` as Markdown; each code cell is followed by a block with what it printed."""
    path = Path(path)
    text = path.read_text()
    namespace = {"__name__": "__main__", "__file__": str(path)}
    parts = []
    for cell in CELL.finditer(text):
        if cell["kind"]:
            parts.append(re.sub(r"^# ?", "", cell["body"], flags=re.MULTILINE).strip())
            continue
        code = cell["body"].strip("\n")
        # Lines of an error are then those of the file.
        before = "\n" * text.count("\n", 0, cell.start("body"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(before + cell["body"], str(path), "exec"), namespace)
        shown = re.sub(r"  # noqa: .*", "", code)
        parts.append(f"```python\n{shown}\n```")
        if output := printed.getvalue().rstrip():
            parts.append(f"```{{code-block}} text\n:class: printed\n\n{output}\n```")
    parts.append(f"*This page is `examples/{path.name}`, run when the site was built.*")
    return "\n\n".join(parts) + "\n"
