"""What autograd offers around a layer: checkpoints, hooks, anomaly mode, saved tensors elsewhere, loss scaling.

Not here: derivatives as such (test_autograd.py, test_layer.py), torch.func (test_func.py), dtypes under autocast
(test_autocast.py).
"""

import sys
from pathlib import Path

import compare
import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)


def gradients(ours, call, x):
    """Results of call(x), and gradients of the input and all weights; the weights' .grad are left empty."""
    leaf = x.clone().requires_grad_()
    results = compare.tensors(call(leaf))
    total = sum(t.sin().sum() for t in results)
    return [*results, *torch.autograd.grad(total, [leaf, *ours.parameters()])]


def same(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@modes
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(mode, reentrant):
    """Kept dropout included: the second run draws what the first drew."""
    ours = compare.OURS[mode](3, 4, 2, bidirectional=True, dropout=0.5)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 2])

    def call(x):
        return ours(x, lengths=lengths)[0]

    def grads(call):
        torch.manual_seed(7)
        leaf = x.clone().requires_grad_()
        for p in ours.parameters():
            p.grad = None
        output = call(leaf)
        output.sin().sum().backward()  # the reentrant kind knows backward() only
        return [output, leaf.grad, *(p.grad for p in ours.parameters())]

    same(grads(lambda x: checkpoint(call, x, use_reentrant=reentrant)), grads(call))


def test_checkpoint_sequential():
    class Output(nn.Module):
        def __init__(self, rnn):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            return self.rnn(x)[0]

    stack = nn.Sequential(*(Output(birnn_ext.GRU(8, 4, bidirectional=True)) for _ in range(4)))
    x = torch.randn(5, 2, 8)
    same(gradients(stack, lambda x: checkpoint_sequential(stack, 2, x, use_reentrant=False), x), gradients(stack, stack, x))


@modes
def test_hooks_of_the_module(mode):
    """Called when torch.nn's are, and with as much; they change no number."""
    x, heard = torch.randn(5, 2, 3), []
    for module in compare.pair(mode, 3, 4, bidirectional=True):
        expected, seen = gradients(module, module, x), []
        handles = [
            module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args))),
            module.register_forward_hook(lambda module, args, result, seen=seen: seen.append(len(result))),
            module.register_full_backward_pre_hook(lambda module, out, seen=seen: seen.append(out[0].shape)),
            module.register_full_backward_hook(lambda module, into, out, seen=seen: seen.append((into[0].shape, len(out)))),
        ]
        same(gradients(module, module, x), expected)
        for handle in handles:
            handle.remove()
        heard.append(seen)
        module.register_full_backward_hook(lambda module, into, out: tuple(2 * g for g in into))
        places = len(compare.tensors(module(x)))
        torch.testing.assert_close(gradients(module, module, x)[places], 2 * expected[places])
    assert heard[0] == heard[1] and len(heard[0]) == 4


@modes
def test_hooks_of_tensors(mode):
    ours = compare.OURS[mode](3, 4, bidirectional=True)
    x, seen = torch.randn(5, 2, 3, requires_grad=True), []
    output, _ = ours(x)
    output.register_hook(lambda g: seen.append("output") or 2 * g)
    ours.weight_hh_l0_reverse.register_hook(lambda g: seen.append("weight"))
    ours.weight_hh_l0_reverse.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    output.sum().backward()
    assert sorted(seen) == ["accumulated", "output", "weight"]
    twice = x.grad
    x.grad = None
    ours(x)[0].sum().backward()
    torch.testing.assert_close(twice, 2 * x.grad)


def test_anomaly_mode_names_the_forward_call():
    ours = birnn_ext.GRU(3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3, requires_grad=True)
    with pytest.warns(UserWarning) as caught, pytest.raises(RuntimeError, match="returned nan values"):  # noqa: SIM117
        with torch.autograd.detect_anomaly():
            output, _ = ours(x)
            output.backward(torch.full_like(output, torch.nan))
    text = "\n".join(str(w.message) for w in caught)
    assert "test_anomaly_mode_names_the_forward_call" in text and "in layer" in text
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        ours(x)[0].sum().backward()


@modes
def test_saved_tensors_can_live_elsewhere(mode, tmp_path):
    ours, x = compare.OURS[mode](3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    expected, count = gradients(ours, ours, x), []

    def to_disk(t):
        path = tmp_path / f"{len(count)}.pt"
        count.append(t.shape)
        torch.save(t.detach(), path)
        return path

    with saved_tensors_hooks(to_disk, torch.load):
        same(gradients(ours, ours, x), expected)
    assert count
    with save_on_cpu():
        same(gradients(ours, ours, x), expected)


def test_hooks_that_refuse_to_save_are_heard():
    ours = birnn_ext.GRU(3, 4)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"), pytest.raises(RuntimeError, match="not here"):
        with saved_tensors_hooks(lambda t: t, lambda t: t):
            ours(torch.randn(5, 2, 3, requires_grad=True))


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scaled_losses_under_autocast(mode, dtype):
    """GradScaler: gradients come back unscaled, a step with an infinite one is left out."""
    ours = compare.OURS[mode](3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype):
        loss = ours(x)[0].float().square().mean()
    expected = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    for p, right in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, right, rtol=1e-2, atol=1e-4)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    before = [p.detach().clone() for p in ours.parameters()]
    scaler.scale(ours(x)[0].sum() * torch.inf).backward()
    scaler.step(optimiser)
    scaler.update()
    same([p.detach() for p in ours.parameters()], before)
    assert scaler.get_scale() == 128.0


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
def test_training_converges_under_autocast(mode):
    """The example's classifier learns as well as without, from the same start."""
    pytest.importorskip("tqdm", reason="the example needs the packages of the extra `bench`")
    sys.path.append(str(Path(__file__).parents[2]))
    from examples import japanese_vowels as example

    train, _ = example.load()
    rows, losses = train.rows(torch.arange(0, 270, 3)), {}
    for enabled in (False, True):
        torch.manual_seed(1)
        model = example.Classifier(birnn_ext, mode, 16)
        optimiser, scaler = torch.optim.Adam(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", enabled=enabled)
        losses[enabled] = []
        for _ in range(25):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = nn.functional.cross_entropy(model(rows.x, rows.lengths).float(), rows.speaker)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            losses[enabled].append(loss.item())
    assert losses[True][-1] < 0.3 * losses[True][0]
    assert abs(losses[True][-1] - losses[False][-1]) < 0.1 * losses[False][0]


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_other_dtypes_train(mode, dtype):
    """module.half() and its like: results and gradients have the dtype of the module, as torch.nn's."""
    theirs, ours = compare.pair(mode, 3, 4, bidirectional=True)
    theirs.to(dtype), ours.to(dtype)
    x, found = torch.randn(5, 2, 3, dtype=dtype), []
    for module in (theirs, ours):
        results = compare.tensors(module(x))
        torch.view_as_real(results[0]).sum().backward() if dtype.is_complex else results[0].sum().backward()
        found.append([*results, *(p.grad for p in module.parameters())])
    loose = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b, rtol=loose, atol=loose * b.abs().max().item())
