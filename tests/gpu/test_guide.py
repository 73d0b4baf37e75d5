"""The guide's code for a GPU runs as it stands, and gives what the layer gives."""

import re
from pathlib import Path

import torch

import birnn_ext

GUIDE = Path(__file__).parents[2] / "docs/guide.md"


def test_streams_and_graphs():
    rnn, x = birnn_ext.GRU(6, 4, bidirectional=True).cuda(), torch.randn(7, 3, 6, device="cuda")
    names = {"torch": torch, "birnn_ext": birnn_ext, "rnn": rnn, "x": x, "lengths": torch.tensor([7, 3, 5], device="cuda")}
    for block in re.findall(r"^```python cuda\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(block, names)
    with torch.no_grad():
        output, h_n = rnn(x, lengths=torch.tensor([2, 7, 0], device="cuda"))
        assert torch.equal(names["output"], output) and torch.equal(names["h_n"], h_n)
        torch.testing.assert_close(names["features"], rnn(x)[0], rtol=0, atol=1e-6)
