"""birnn_ext.benchmark: on copies, checked first, and it says no where the two differ. No time is judged here."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_ext
from birnn_ext import bench


class Tagger(nn.Module):
    """Words in, a score for each tag out: a user's model, with dropout, a mask as keyword, and tags beside the scores."""

    def __init__(self, library=nn):
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.rnn = library.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.tags = nn.Linear(10, 4)

    def forward(self, words, scale=None):
        scores = self.tags(self.rnn(self.words(words))[0])
        scores = scores if scale is None else scores * scale
        return {"scores": scores, "tags": scores.argmax(-1)}


WORDS = torch.randint(20, (3, 7))


def found(model, given, **more):
    return birnn_ext.benchmark(model, given, budget=0.01, quiet=True, **more)


@pytest.mark.parametrize(
    "given", [WORDS, (WORDS,), [WORDS, torch.ones(1)], {"words": WORDS}], ids=["tensor", "tuple", "list", "dict"]
)
@pytest.mark.parametrize("library", [nn, birnn_ext], ids=["torch", "ours"])
def test_both_passes_of_a_model(library, given):
    result = found(Tagger(library), given)
    assert list(result.passes) == ["inference", "training"] and result.layers == 1
    for measured in result.passes.values():
        assert measured.runs >= 6 and measured.low <= measured.ratio <= measured.high
        assert measured.theirs_ms > 0 and measured.ours_ms > 0
    assert 0 <= result.difference < 1e-5
    assert "1 layer swapped, cpu" in str(result) and "inference" in str(result) and "training" in str(result)


def test_the_model_stays_as_it_was():
    model = Tagger().train()
    model(WORDS)["scores"].sum().backward()
    before, draws = copy.deepcopy(model), torch.get_rng_state()
    gradients = [p.grad.clone() for p in model.parameters()]
    found(model, WORDS, passes=("inference",))
    assert torch.equal(draws, torch.get_rng_state())
    found(model, WORDS)
    assert type(model.rnn) is nn.LSTM and model.training
    for p, q, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, gradient)


def test_the_two_copies_are_of_the_two_libraries(monkeypatch):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3)

        def forward(self, x):
            seen.append((type(self.rnn).__module__.split(".")[0], self.training, torch.is_grad_enabled()))
            return self.rnn(x)

    found(Spy(), torch.randn(4, 2, 2))
    assert {entry[0] for entry in seen} == {"torch", "birnn_ext"}
    # The check in eval mode with gradients, then each pass as it should be.
    assert {entry[1:] for entry in seen} == {(False, True), (False, False), (True, True)}


def test_no_backward_pass_in_eval_mode(monkeypatch):
    """As cuDNN has none: torch.nn's layers are in training mode whenever gradients are asked for, with their dropout."""
    original, dropouts = nn.LSTM.forward, set()

    def like_cudnn(self, *arguments):
        if torch.is_grad_enabled() and not self.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        dropouts.add(self.dropout)
        return original(self, *arguments)

    monkeypatch.setattr(nn.LSTM, "forward", like_cudnn)
    found(Tagger(), WORDS)
    assert dropouts == {0.0, 0.5}  # checked without, timed with


def test_it_prints(capsys):
    result = birnn_ext.benchmark(nn.GRU(2, 3), torch.randn(4, 2, 2), budget=0.01)
    assert capsys.readouterr().out == f"{result}\n"


def test_packed_input_and_frozen_weights():
    packed = pack_padded_sequence(torch.randn(5, 3, 2), [5, 3, 1])
    model = nn.LSTM(2, 3, bidirectional=True).requires_grad_(False)
    assert list(found(model, packed).passes) == ["inference"]
    with pytest.raises(ValueError, match="no parameter of model requires a gradient"):
        found(model, packed, passes=("training",))


@pytest.mark.parametrize("what", ["result", "gradient"])
def test_a_difference_ends_it_before_anything_is_timed(monkeypatch, what):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3)

        def forward(self, x):
            output, _ = self.rnn(x)
            if isinstance(self.rnn, nn.GRU):
                return output
            return output * 1.01 if what == "result" else output + 0.01 * (output - output.detach())

    monkeypatch.setattr(bench.clock, "interleave", lambda *a, **k: pytest.fail("timed"))
    with pytest.raises(bench.Disagreement, match="result 0 differs by" if what == "result" else "gradient of rnn"):
        found(Wrong(), torch.randn(4, 2, 2))


def test_nan_on_one_side_is_a_difference():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3)

        def forward(self, x):
            output, _ = self.rnn(x)
            return output if isinstance(self.rnn, nn.GRU) else output * torch.nan

    with pytest.raises(bench.Disagreement, match="inf of its largest value"):
        found(Wrong(), torch.randn(4, 2, 2), passes=("inference",))


class Own(nn.GRU):
    pass


@pytest.mark.parametrize(
    ("model", "more", "error", "text"),
    [
        ("model", {}, TypeError, "model should be a torch.nn.Module, got str"),
        (nn.Linear(2, 2), {}, ValueError, "model should hold a torch.nn.RNN, GRU or LSTM, and holds none"),
        (Own(2, 2), {}, ValueError, "left alone, because subclasses may count on more: Own"),
        (nn.GRU(2, 2), {"passes": ("backward",)}, ValueError, "out of inference, training, got 'backward'"),
    ],
)
def test_wrong_arguments(model, more, error, text):
    with pytest.raises(error, match=text):
        found(model, torch.randn(4, 2, 2), **more)
