"""docs/pytorch.md: every example runs as it stands. Not here: what the page claims in words (the other files)."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"
# ```python and, behind it, what the example needs: "slow", or packages.
BLOCKS = re.findall(r"^```python *([^\n]*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
CASES = [
    pytest.param(code, [w for w in needs.split() if w != "slow"], id=f"{i}", marks=[pytest.mark.slow] * ("slow" in needs))
    for i, (needs, code) in enumerate(BLOCKS)
]


def test_there_are_examples():
    assert len(BLOCKS) >= 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code, packages", CASES)
def test_example(code, packages, tmp_path, monkeypatch):
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
