"""The notebooks of examples/ run from top to bottom, in any order, with their own assertions; and each says something."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = [path for path in sorted(EXAMPLES.glob("*.py")) if path.read_text().startswith("# %% [markdown]")]


@pytest.fixture(autouse=True)
def default_print():
    yield
    torch.set_printoptions(profile="default")


def test_there_is_one_for_each_question():
    assert {path.stem for path in NOTEBOOKS} == {"reverse_half", "gru_by_hand", "manual_loop", "four_layers", "padding"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, capsys):
    assert path.read_text().count("assert ") >= 4
    runpy.run_path(str(path))
    assert len(capsys.readouterr().out.splitlines()) >= 8
