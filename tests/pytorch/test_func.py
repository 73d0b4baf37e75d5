"""torch.func: every transform of every mode against autograd and loops; where torch.nn fails, a test that it does.

Not here: autograd itself (test_autograd.py, test_layer.py).
"""

import functools

import compare
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)
layouts = pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])


def small(mode, batch_first=False, **options):
    return birnn_ext.BiRNN(3, 4, num_layers=2, mode=mode, batch_first=batch_first, **options).double()


@modes
@layouts
def test_vmap_over_inputs(mode, batch_first):
    theirs, ours = compare.pair(mode, 3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    expected = torch.stack([theirs(sample)[0] for sample in x])
    torch.testing.assert_close(vmap(lambda sample: ours(sample)[0])(x), expected)
    found = vmap(lambda sample: ours(sample)[0], in_dims=2, out_dims=1)(x.movedim(0, 2))
    torch.testing.assert_close(found, expected.movedim(0, 1))
    chunks = vmap(lambda sample: ours(sample)[0], chunk_size=4)(x)
    torch.testing.assert_close(chunks, expected)


@modes
def test_vmap_over_states_and_lengths(mode):
    ours = small(mode)
    x, lengths = torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([[5, 0, 2], [1, 4, 5]])
    hx = [compare.states(ours, 3) for _ in lengths]
    stacked = tuple(torch.stack(s) for s in zip(*hx, strict=True)) if mode == "LSTM" else torch.stack(hx)
    found = vmap(lambda h, n: ours(x, h, lengths=n), (0, 0))(stacked, lengths)
    expected = [ours(x, h, lengths=n) for h, n in zip(hx, lengths, strict=True)]
    for sample, right in enumerate(expected):
        for a, b in zip(compare.tensors(found), compare.tensors(right), strict=True):
            torch.testing.assert_close(a[sample], b)


@modes
@layouts
def test_vjp_and_jvp(mode, batch_first):
    ours = small(mode, batch_first)
    x, direction = torch.randn(2, 4, 3, 3, dtype=torch.float64).unbind()

    def output(x):
        return ours(x)[0]

    value, pullback = vjp(output, x)
    cotangent = torch.randn_like(value)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(output(leaf), leaf, cotangent)
    torch.testing.assert_close(pullback(cotangent)[0], expected)
    value, tangent = jvp(output, (x,), (direction,))
    torch.testing.assert_close(value, output(x))
    torch.testing.assert_close((tangent * cotangent).sum(), (direction * expected).sum())


@modes
@layouts
def test_jacobians_and_hessians(mode, batch_first):
    ours = small(mode, batch_first)
    x = torch.randn(3, 2, 3, dtype=torch.float64)

    def output(x):
        return ours(x)[0]

    def loss(x):
        return ours(x)[0].square().sum()

    jacobian = torch.autograd.functional.jacobian(output, x)
    torch.testing.assert_close(jacrev(output)(x), jacobian)
    torch.testing.assert_close(jacfwd(output)(x), jacobian)
    second = torch.autograd.functional.hessian(loss, x)
    for found in (hessian(loss), jacrev(jacrev(loss)), jacfwd(jacfwd(loss)), jacrev(jacfwd(loss))):
        torch.testing.assert_close(found(x), second)


# ---- gradients per sample ----


def loss_of(module):
    """(weights, input, more arguments) -> a number that every result of `module` has a part in."""

    def loss(weights, x, *rest, **options):
        results = functional_call(module, weights, (x, *rest), options)
        return sum((t.sin() * (i + 1)).sum() for i, t in enumerate(compare.tensors(results)))

    return loss


def per_sample_loop(module, weights, samples, **options):
    """The same gradients, one sample after the other, by autograd."""
    each = []
    for sample in samples:
        value = loss_of(module)(weights, *sample, **options)
        each.append(torch.autograd.grad(value, list(weights.values())))
    return {name: torch.stack(g) for name, g in zip(weights, zip(*each, strict=True), strict=True)}


def agree(found, expected):
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(params=["op", "pytorch"])
def through_time(request, monkeypatch):
    """What goes back through time for per-sample gradients: an op, or where a device has none, a loop in PyTorch."""
    if request.param == "pytorch":
        monkeypatch.setattr("birnn_ext.per_sample.BY_OP", ())


@modes
@layouts
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("directions", [1, 2])
def test_gradients_per_sample(mode, batch_first, bias, directions, through_time):
    kind = functools.partial(compare.OURS[mode], 3, 4, 2, bias=bias, batch_first=batch_first, bidirectional=directions == 2)
    ours = kind(dtype=torch.float64)
    x = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    weights = dict(ours.named_parameters())
    agree(vmap(grad(loss_of(ours)), (None, 0))(weights, x), per_sample_loop(ours, weights, zip(x)))  # noqa: B905


@pytest.mark.parametrize("mode", [*MODES, "RNN_RELU", "LSTM_PROJ"])
@layouts
def test_gradients_per_sample_with_states_and_lengths(mode, batch_first, through_time):
    """Padding is poisoned; lengths are of zero, of one, whole, and different in every sample."""
    mode, options = ("LSTM", {"proj_size": 2}) if mode == "LSTM_PROJ" else (mode, {})
    ours = small(mode, batch_first, **options)
    lengths = torch.tensor([[5, 0, 1], [2, 5, 4], [1, 3, 0]])
    x = torch.randn(3, 3, 5, 3, dtype=torch.float64)
    x[torch.arange(5) >= lengths[..., None]] = torch.nan
    x = x if batch_first else x.transpose(1, 2)
    hx = [compare.states(ours, 3) for _ in lengths]
    stacked = tuple(torch.stack(s) for s in zip(*hx, strict=True)) if mode == "LSTM" else torch.stack(hx)
    weights = dict(ours.named_parameters())

    def loss(weights, x, h, n):
        return loss_of(ours)(weights, x, h, lengths=n)

    found = vmap(grad(loss, (0, 1, 2)), (None, 0, 0, 0))(weights, x, stacked, lengths)
    leaves = [x.clone().requires_grad_(), *(s.requires_grad_() for h in hx for s in compare.tensors(h))]
    each = [loss(weights, *sample) for sample in zip(leaves[0], hx, lengths, strict=True)]
    grad_x, *grad_h = torch.autograd.grad(sum(each), leaves, retain_graph=True)
    torch.testing.assert_close(found[1], grad_x)
    states = len(grad_h) // 3
    for i, s in enumerate(compare.tensors(found[2])):
        torch.testing.assert_close(s, torch.stack(grad_h[i::states]))
    for i, value in enumerate(each):
        expected = torch.autograd.grad(value, list(weights.values()), retain_graph=True)
        agree({name: g[i] for name, g in found[0].items()}, dict(zip(weights, expected, strict=True)))


@modes
@pytest.mark.parametrize("through", ["weights", "inputs"])
def test_derivatives_of_gradients_per_sample(mode, through):
    """As in differentiating a penalty on per-sample gradient norms."""
    ours = birnn_ext.BiRNN(2, 3, mode=mode, dtype=torch.float64)
    weights = {name: w.detach() for name, w in ours.named_parameters()}
    x, lengths = torch.randn(3, 3, 2, 2, dtype=torch.float64), torch.tensor([3, 2])

    def norms(gradients):
        return sum(g.flatten(1).square().sum(1).sin().sum() for g in gradients.values())

    def loss(weights, x):
        return loss_of(ours)(weights, x, lengths=lengths)

    def batched(weights, x):
        return norms(vmap(grad(loss), (None, 0))(weights, x))

    def looped(weights, x):
        each = [grad(loss)(weights, sample) for sample in x]
        return norms({name: torch.stack([g[name] for g in each]) for name in weights})

    place = 0 if through == "weights" else 1
    torch.testing.assert_close(grad(batched, place)(weights, x), grad(looped, place)(weights, x))
    # The same by autograd outside of torch.func.
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    leaf = x.clone().requires_grad_()
    wanted = list(leaves.values()) if place == 0 else [leaf]
    found = torch.autograd.grad(batched(leaves, leaf), wanted)
    expected = torch.autograd.grad(looped(leaves, leaf), wanted)
    torch.testing.assert_close(found, expected)


@modes
def test_gradients_per_sample_take_one_call_for_all_samples(mode, monkeypatch):
    """Why they are faster than a loop: a number of calls that does not grow with the samples."""
    ours = small(mode).float()
    weights = {name: w.detach() for name, w in ours.named_parameters()}
    calls = []
    for name in ("layer", "layer_backward"):
        op = getattr(torch.ops.birnn_ext, name)
        monkeypatch.setattr(torch.ops.birnn_ext, name, lambda *a, op=op, name=name: (calls.append(name), op(*a))[1])
    vmap(grad(loss_of(ours)), (None, 0))(weights, torch.randn(64, 5, 1, 3))
    assert calls == ["layer"] * 2  # two layers; their backward is a batched one of its own, not 64 of the op's


# ---- ensembles ----


@modes
def test_ensembles(mode):
    members = [small(mode) for _ in range(3)]
    weights, _ = stack_module_state(members)
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)

    def call(weights, sample):
        return functional_call(members[0], weights, (sample,))[0]

    expected = [member(sample)[0] for member, sample in zip(members, x, strict=True)]
    torch.testing.assert_close(vmap(call)(weights, x), torch.stack(expected))
    expected = [member(x[0])[0] for member in members]
    torch.testing.assert_close(vmap(call, (0, None))(weights, x[0]), torch.stack(expected))


@modes
def test_gradients_of_an_ensemble(mode):
    members = [small(mode) for _ in range(3)]
    weights, _ = stack_module_state(members)
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    found = vmap(grad(loss_of(members[0])))(weights, x)
    for i, (member, sample) in enumerate(zip(members, x, strict=True)):
        own = dict(member.named_parameters())
        agree(
            {name: g[i] for name, g in found.items()}, {n: g[0] for n, g in per_sample_loop(member, own, [(sample,)]).items()}
        )


# ---- what torch.nn does today ----

X = torch.randn(2, 5, 2, 3)


def map_over_inputs(layer):
    return vmap(lambda sample: layer(sample)[0])(X)


def gradients_per_sample(layer):
    def loss(weights, sample):
        return functional_call(layer, weights, (sample,))[0].sum()

    return vmap(grad(loss), (None, 0))(dict(layer.named_parameters()), X)


def ensemble(layer):
    weights, _ = stack_module_state([layer, layer])
    return vmap(lambda weights, sample: functional_call(layer, weights, (sample,))[0])(weights, X)


def forward_jacobian(layer):
    return jacfwd(lambda sample: layer(sample)[0])(X[0])


# As of torch 2.13: an entry that torch learns to do has to leave this list, and the documentation.
TORCH_FAILS = {
    map_over_inputs: ("RNN", "GRU", "LSTM"),
    gradients_per_sample: ("RNN", "GRU"),
    ensemble: ("RNN", "GRU", "LSTM"),
    forward_jacobian: ("LSTM",),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("run", TORCH_FAILS, ids=lambda run: run.__name__)
def test_contrast_with_torch(run, kind):
    run(getattr(birnn_ext, kind)(3, 4, bidirectional=True))
    theirs = getattr(torch.nn, kind)(3, 4, bidirectional=True)
    if kind in TORCH_FAILS[run]:
        with pytest.raises((RuntimeError, NotImplementedError)):
            run(theirs)
    else:
        run(theirs)


def test_cotangents_alone_are_mapped_without_copies_of_the_input(monkeypatch):
    """is_grads_batched: the samples share everything but the cotangents, and the op is called for each."""
    from birnn_ext import per_sample

    layer, x = birnn_ext.GRU(3, 4, bidirectional=True), torch.randn(5, 2, 3)
    output = layer(x)[0].sum((0, 2))
    each = [torch.autograd.grad(output[i], list(layer.parameters()), retain_graph=True) for i in range(2)]
    monkeypatch.setattr(per_sample, "gradients", None)
    found = torch.autograd.grad(output, list(layer.parameters()), torch.eye(2), is_grads_batched=True)
    for i in range(2):
        for a, b in zip(found, each[i], strict=True):
            torch.testing.assert_close(a[i], b)
