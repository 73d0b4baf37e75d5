"""Packages around PyTorch, where they are installed: none is needed, each has to work."""

import copy

import pytest
import torch
from torch import nn

import birnn_ext


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = birnn_ext.LSTM(3, 4, 2, bidirectional=True, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


X, TARGET = torch.randn(8, 5, 3), torch.randn(8, 5, 2)


def plain_training(model, steps):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(steps):
        optimiser.zero_grad()
        (model(X[4 * i : 4 * i + 4]) - TARGET[4 * i : 4 * i + 4]).square().mean().backward()
        optimiser.step()
    return dict(model.named_parameters())


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, path = Tagger(), str(tmp_path / "model.safetensors")
    safetensors.save_model(model, path)
    other = Tagger()
    safetensors.load_model(other, path)
    assert torch.equal(other(X), model(X))
    theirs = nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
    weights = {k.removeprefix("rnn."): v for k, v in safetensors.load_file(path).items() if k.startswith("rnn.")}
    theirs.load_state_dict(weights, strict=True)


def test_torchinfo():
    torchinfo = pytest.importorskip("torchinfo")
    model = Tagger()
    report = torchinfo.summary(model, input_size=(8, 5, 3), verbose=0)
    assert report.total_params == sum(p.numel() for p in model.parameters())
    assert "LSTM" in str(report) and "[8, 5, 8]" in str(report)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model = Tagger()
    expected = plain_training(copy.deepcopy(model), 2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, TARGET), batch_size=4)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    for x, target in loader:
        optimiser.zero_grad()
        accelerator.backward((model(x) - target).square().mean())
        optimiser.step()
    torch.testing.assert_close(dict(accelerator.unwrap_model(model).named_parameters()), expected)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    try:
        import lightning.pytorch as lightning
    except ImportError:
        lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Tagger()

        def training_step(self, batch, _):
            x, target = batch
            return (self.model(x) - target).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    expected = plain_training(copy.deepcopy(module.model), 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, TARGET), batch_size=4)
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader)
    torch.testing.assert_close(dict(module.model.named_parameters()), expected)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantization_leaves_the_layer_alone():
    """Int8 is torch.nn's: revert(model) brings it. Quantizing the rest of a model works around ours."""
    model = Tagger().eval()
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(small.rnn) is birnn_ext.LSTM and type(small.out) is not nn.Linear
    torch.testing.assert_close(small(X), model(X), atol=0.05, rtol=0.05)
    smaller = torch.ao.quantization.quantize_dynamic(birnn_ext.revert(model), {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    torch.testing.assert_close(smaller(X), small(X), atol=0.05, rtol=0.05)
