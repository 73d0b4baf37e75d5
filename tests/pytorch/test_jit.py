"""TorchScript: tracing works in inference; everything else is an error that names torch.export."""

import io

import pytest
import torch
from torch import nn

import birnn_ext

pytestmark = pytest.mark.filterwarnings("ignore")
needs_kernel = pytest.mark.skipif(birnn_ext.ops._C is None, reason="the reference is traced for one T only")


class Tagger(nn.Module):
    def __init__(self, mode="GRU"):
        super().__init__()
        self.rnn, self.out = birnn_ext.BiRNN(3, 4, 2, mode=mode), nn.Linear(8, 2)

    def forward(self, x, lengths):
        return self.out(self.rnn(x, lengths=lengths)[0])


@needs_kernel
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_trace_in_inference(mode):
    """One trace serves every T and B, from a file too."""
    model, file = Tagger(mode).eval(), io.BytesIO()
    with torch.no_grad():
        traced = torch.jit.trace(model, (torch.randn(5, 2, 3), torch.tensor([5, 2])))
    torch.jit.save(traced, file)
    file.seek(0)
    for program in (traced, torch.jit.load(file)):
        for T, B in [(5, 2), (1, 1), (12, 7)]:
            x, lengths = torch.randn(T, B, 3), torch.arange(B) % (T + 1)
            assert torch.equal(program(x, lengths), model(x, lengths))


@needs_kernel
def test_trace_with_gradients_is_refused():
    with pytest.raises(RuntimeError, match="trace under torch.no_grad.*or use torch.export"):
        torch.jit.trace(Tagger(), (torch.randn(5, 2, 3), torch.tensor([5, 2])))


@pytest.mark.parametrize("build", [lambda: birnn_ext.GRU(3, 4), Tagger], ids=["layer", "model"])
def test_script_is_refused(build):
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile birnn_ext.\w+: use torch.export"):
        torch.jit.script(build())
