"""birnn_ext.explain: what the drawing says is so, and what it cannot draw it refuses."""

import re
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_ext
from birnn_ext.explain import coloured, describe

T, B, I, H = 7, 3, 4, 5  # noqa: E741


def claims(text):
    """(row of h_n, index of output) for every "row n ... = output[...]" of a drawing."""
    return re.findall(r"row (\d+) .*= (output\[.*\])", text)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("both", [True, False], ids=["both", "one"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("library", [nn, birnn_ext], ids=["torch", "ours"])
def test_the_rows_are_where_the_drawing_says(library, batch_first, both, layers):
    layer = library.LSTM(I, H, layers, batch_first=batch_first, bidirectional=both)
    output, (h_n, c_n) = layer(torch.randn((B, T, I) if batch_first else (T, B, I)))
    for text in (describe((output, (h_n, c_n))), describe(layer, steps=T, batch=B), describe(layer)):
        found = claims(text)
        assert [int(row) for row, _ in found] == list(range(h_n.size(0) - 1 - both, h_n.size(0)))
        for row, index in found:
            assert torch.equal(h_n[int(row)], eval(index, {"output": output}))
        assert f"L*D={len(h_n)}" in text and "c_n [" in text
    assert f"output [{'B=3, T=7' if batch_first else 'T=7, B=3'}, {f'2*P={2 * H}' if both else f'P={H}'}]" in describe(
        (output, h_n)
    )


@pytest.mark.parametrize("mode", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("more", [{}, {"bidirectional": True}, {"bias": False}], ids=str)
def test_the_weights_have_the_shapes_in_the_drawing(mode, more):
    layer = getattr(nn, mode)(I, H, 2, **more)
    text = describe(layer)
    for name, weight in layer.named_parameters():
        if not name.endswith("_reverse"):
            (line,) = [line for line in text.splitlines() if line.split("  [")[0].strip().find(name) >= 0]
            assert f"[{', '.join(map(str, weight.shape))}]" in line
    assert ("bias_ih" in text) == layer.bias and ("_reverse" in text) == layer.bidirectional


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projection_is_drawn():
    text = describe(birnn_ext.LSTM(I, H, bidirectional=True, proj_size=2))
    assert "weight_hr_l0  [2, 5]" in text and "2*P=4" in text and "c_n [L*D=2, B, H=5]" in text


def test_unbatched_packed_and_tiny_results():
    layer = nn.GRU(I, 1, bidirectional=True)
    output, h_n = layer(torch.randn(1, I))
    for row, index in claims(describe((output, h_n))):
        assert torch.equal(h_n[int(row)], eval(index, {"output": output}))
    packed = layer(pack_padded_sequence(torch.randn(T, B, I), [2, 7, 3], enforce_sorted=False))
    assert "after each row's last step" in describe(packed) and "T=7" in describe(packed)


def test_a_square_output_is_taken_as_time_first_unless_told():
    results = nn.GRU(I, H, batch_first=True)(torch.randn(3, 3, I))
    assert "[T=3, B=3" in describe(results) and "[B=3, T=3" in describe(results, batch_first=True)


def test_it_prints_and_in_a_notebook_shows(monkeypatch, capsys):
    layer = birnn_ext.GRU(I, H, bidirectional=True)
    birnn_ext.explain(layer, steps=T)
    assert capsys.readouterr().out == describe(layer, steps=T) + "\n"
    shown = []
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, shown.append
    shell = types.ModuleType("IPython")
    shell.get_ipython, shell.display = lambda: types.SimpleNamespace(kernel=1), display
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    birnn_ext.explain(layer)
    assert shown == [coloured(describe(layer))] and not capsys.readouterr().out
    assert re.sub("<.*?>", "", shown[0]).count("forward") == describe(layer).count("forward")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: describe(nn.Linear(1, 1)), TypeError, "subject should be an RNN.*got Linear"),
        (lambda: describe((1, torch.zeros(2, 1, 1))), TypeError, "output should be a Tensor, got int"),
        (lambda: describe((torch.zeros(2, 1, 4), None)), TypeError, "h_n should be a Tensor, got NoneType"),
        (lambda: describe((torch.zeros(2, 1, 4), torch.zeros(2, 1, 3))), ValueError, "one or two times the 3 features"),
        (lambda: describe((torch.zeros(2, 1, 4), torch.zeros(3, 1, 2))), ValueError, "h_n as many rows"),
        (lambda: describe((torch.zeros(2, 5, 4), torch.zeros(2, 3, 2))), ValueError, "the 3 rows of h_n"),
        (lambda: describe((torch.zeros(2, 4), torch.zeros(2, 3, 2))), ValueError, "of one layer"),
        (lambda: describe(nn.GRU(1, 1), steps=0), ValueError, "steps should be a positive int, got 0"),
        (lambda: describe(nn.GRU(1, 1), batch="2"), ValueError, "batch should be a positive int, got '2'"),
        (lambda: describe(nn.GRU(1, 1), batch_first=True), ValueError, "batch_first should be None for a module"),
        (lambda: describe((torch.zeros(2, 1, 4), torch.zeros(2, 1, 2)), steps=2), ValueError, "should be None for results"),
    ],
)
def test_what_cannot_be_drawn(call, error, text):
    with pytest.raises(error, match=text):
        call()
