"""The code in the guide and in the README runs as it stands, and every page of docs/ is in a table of contents.

That the site builds, without a warning, is `make docs`; the notebooks are test_notebooks.py.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import birnn_ext

ROOT = Path(__file__).parents[1]
LENGTHS = [7, 3, 5]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 4, num_layers=2, bidirectional=True)

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_code_runs_from_top_to_bottom(page, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    model, x = birnn_ext.convert(Model()), torch.randn(7, 3, 6)
    output, h_n = model.rnn(x, lengths=LENGTHS)
    names = {"model": model, "x": x, "example_input": x, "lengths": LENGTHS, "output": output, "h_n": h_n}
    for block in blocks:
        # A moment is enough to show that it works.
        exec(block.replace("benchmark(model, example_input)", "benchmark(model, example_input, budget=0.01)"), names)
    if page == "docs/guide.md":
        assert torch.equal(names["features"], torch.cat(names["h"][1], 1))
        assert "times as fast" in (printed := capsys.readouterr().out) and "float32 on cpu" in printed


def test_code_for_a_gpu_is_python():
    """tests/gpu/test_guide.py runs it."""
    blocks = re.findall(r"^```python cuda\n(.*?)^```", (ROOT / "docs/guide.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "guide.md", "exec")


def test_every_page_is_listed():
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if not page.startswith("_")} - {"index"}
    listed = set()
    for path in (ROOT / "docs").rglob("index.md"):
        folder = path.parent.relative_to(ROOT / "docs")
        for block in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(), re.DOTALL):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(folder / entry).as_posix() for entry in entries}
    assert pages <= listed
    # What is listed without being there is made of a notebook.
    assert all((ROOT / "examples" / f"{Path(name).name}.py").exists() for name in listed - pages)
