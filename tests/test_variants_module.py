"""A layer with variants as a module: construction, repr, errors, saving, convert, and every transform of PyTorch.

Not here: what the variants compute (test_variants.py).
"""

import copy
import io
import pathlib
import pickle
import re

import compare
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import birnn_ext

T, B, I, H = 4, 3, 3, 4  # noqa: E741
MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)
ALL = {"merge_mode": "mul", "recurrent_dropout": 0.3, "zoneout": 0.2, "weight_drop": 0.3, "layer_norm": True}


def build(mode="LSTM", layers=1, **options):
    return birnn_ext.BiRNN(I, H, layers, mode=mode, dtype=torch.float64, **(options or ALL))


def data(*shape):
    return torch.randn(*(shape or (T, B)), I, dtype=torch.float64)


def resets(*shape):
    return torch.rand(shape or (T, B)) < 0.4


# ------------------------------------------------------------------------------------------ construction


def test_defaults():
    layer = birnn_ext.LSTM(3, 4)
    assert layer.variant is None and "variant" not in vars(layer)
    assert (layer.merge_mode, layer.recurrent_dropout, layer.zoneout, layer.weight_drop) == ("concat", 0, 0, 0)
    assert layer.layer_norm is False and layer.init == "torch" and layer.unit_forget_bias is False


def test_repr_shows_what_is_asked_for():
    assert repr(birnn_ext.GRU(3, 4, zoneout=0.1)) == "GRU(3, 4, zoneout=0.1)"
    layer = birnn_ext.LSTM(3, 4, bidirectional=True, merge_mode=None, layer_norm=True, init="orthogonal")
    assert repr(layer) == "LSTM(3, 4, bidirectional=True, merge_mode=None, layer_norm=True, init='orthogonal')"
    assert repr(birnn_ext.BiRNN(3, 4, merge_mode="sum")) == "BiRNN(3, 4, mode='GRU', merge_mode='sum')"


def test_parameters_of_layer_norm():
    shapes = {k: tuple(v.shape) for k, v in birnn_ext.LSTM(3, 4, 2, layer_norm=True).state_dict().items()}
    plain = {k: tuple(v.shape) for k, v in birnn_ext.LSTM(3, 4, 2).state_dict().items()}
    extra = {"gain_ih": (16,), "gain_hh": (16,), "gain_c": (4,), "bias_c": (4,)}
    assert shapes == plain | {f"{kind}_l{layer}": shape for layer in (0, 1) for kind, shape in extra.items()}
    names = list(birnn_ext.GRU(3, 4, bias=False, bidirectional=True, layer_norm=True).state_dict())
    kinds = ("weight_ih", "weight_hh", "gain_ih", "gain_hh")
    assert names == [f"{kind}_l0{suffix}" for suffix in ("", "_reverse") for kind in kinds]
    assert not any("bias" in name for name in birnn_ext.LSTM(3, 4, bias=False, layer_norm=True).state_dict())


def test_probabilities_can_be_changed_and_shapes_cannot():
    layer, x = build("LSTM", zoneout=0.2), data()
    layer.zoneout = (0.0, 0.5)
    assert repr(layer).endswith("zoneout=(0.0, 0.5))")
    layer.zoneout = 0.0
    assert layer.variant is None
    layer.recurrent_dropout = 1.0
    expected = layer(x)[0]
    with torch.no_grad():
        layer.recurrent_dropout = 0.0
        layer.weight_hh_l0.zero_(), layer.weight_hh_l0_reverse.zero_()
    torch.testing.assert_close(layer(x)[0], expected)
    with pytest.raises(ValueError, match=r"zoneout should be a number in range \[0, 1\].*, got 2"):
        layer.zoneout = 2
    for name in ("merge_mode", "layer_norm"):
        with pytest.raises(AttributeError, match=f"{name} is fixed when the layer is built"):
            setattr(layer, name, None)


WRONG = [
    ("LSTM", {"merge_mode": "ave"}, ValueError, "merge_mode should be one of 'concat', 'sum', 'mean', 'mul', None, got 'ave'"),
    ("GRU", {"merge_mode": ["sum"]}, ValueError, r"merge_mode should be one of .*, got \['sum'\]"),
    ("GRU", {"merge_mode": "sum", "bidirectional": False}, ValueError, "merge_mode='sum' needs bidirectional=True"),
    ("GRU", {"merge_mode": None, "bidirectional": False}, ValueError, "merge_mode=None needs bidirectional=True"),
    ("GRU", {"recurrent_dropout": 1.5}, ValueError, r"recurrent_dropout should be a number in range \[0, 1\], got 1.5"),
    ("GRU", {"recurrent_dropout": True}, ValueError, "recurrent_dropout should be a number .*, got True"),
    ("GRU", {"recurrent_dropout": float("nan")}, ValueError, "recurrent_dropout should be a number .*, got nan"),
    ("GRU", {"weight_drop": "0.5"}, ValueError, "weight_drop should be a number .*, got '0.5'"),
    ("GRU", {"weight_drop": -0.1}, ValueError, "weight_drop should be a number .*, got -0.1"),
    ("GRU", {"zoneout": None}, ValueError, r"zoneout should be a number in range \[0, 1\], got None"),
    ("GRU", {"zoneout": (0.1, 0.2)}, ValueError, r"zoneout should be a number in range \[0, 1\], got \(0.1, 0.2\)"),
    ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}, ValueError, r"zoneout should be .*, or a pair \(for h, for c\) of such, got"),
    ("LSTM", {"zoneout": (0.1, 2)}, ValueError, r"zoneout should be .* of such, got \(0.1, 2\)"),
    ("LSTM", {"layer_norm": 1}, TypeError, "layer_norm should be of type bool, got: int"),
    ("LSTM", {"init": "xavier"}, ValueError, "init should be one of 'torch', 'orthogonal', got 'xavier'"),
    ("LSTM", {"unit_forget_bias": 1}, TypeError, "unit_forget_bias should be of type bool, got: int"),
    ("GRU", {"unit_forget_bias": True}, ValueError, "unit_forget_bias=True needs an LSTM: GRU has no forget gate"),
    ("LSTM", {"unit_forget_bias": True, "bias": False}, ValueError, "unit_forget_bias=True needs bias=True"),
]


@pytest.mark.parametrize("mode, options, kind, text", WRONG)
def test_wrong_construction(mode, options, kind, text):
    with pytest.raises(kind, match=text):
        compare.OURS[mode](3, 4, **{"bidirectional": True, **options})


def test_wrong_resets():
    layer, x = build("GRU", zoneout=0.1), data()
    for reset, kind, text in (
        ([True] * T, TypeError, "reset should be a bool tensor, got list"),
        (resets().double(), TypeError, "reset should be a bool tensor, got a tensor of torch.float64"),
        (resets(B, T), ValueError, r"one entry for each step of each row .*, expected shape \(4, 3\), got \(3, 4\)"),
        (resets(T), ValueError, r"expected shape \(4, 3\), got \(4,\)"),
        (resets().to("meta"), RuntimeError, "reset should be on a device with data, as input on cpu is, got a tensor on meta"),
        (resets().numpy(), TypeError, "reset should be a bool tensor, got ndarray"),
        (1, TypeError, "reset should be a bool tensor, got int"),
        (resets(T, B, 1), ValueError, r"expected shape \(4, 3\), got \(4, 3, 1\)"),
    ):
        with pytest.raises(kind, match=text):
            layer(x, reset=reset)
    with pytest.raises(ValueError, match=r"expected shape \(4, 1\), got \(3, 1\)"):
        layer(x[:, 0], reset=resets(B))
    packed = pack_padded_sequence(x, [4, 3, 2])
    with pytest.raises(TypeError, match="reset should be a PackedSequence where input is one, got Tensor"):
        layer(packed, reset=resets())
    with pytest.raises(ValueError, match=r"packed as input is, expected lengths \[4, 3, 2\], got \[3, 4, 2\]"):
        layer(packed, reset=pack_padded_sequence(resets(), [3, 4, 2], enforce_sorted=False))
    with pytest.raises(TypeError, match="reset should be a bool tensor, got a tensor of torch.float64"):
        layer(packed, reset=pack_padded_sequence(resets().double(), [4, 3, 2]))
    with pytest.raises(TypeError, match="reset should be a bool tensor, got PackedSequence"):
        layer(x, reset=pack_padded_sequence(resets(), [4, 3, 2]))
    with pytest.raises(TypeError, match="return_states should be of type bool, got: str"):
        layer(x, return_states="yes")


# ----------------------------------------------------------------------------------- saving and swapping


def test_copies_and_pickles():
    layer, x = build(layers=2), data()
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.variant == layer.variant and repr(copied) == repr(layer)
        results = []
        for module in (layer, copied):
            torch.manual_seed(1)
            results.append(module(x)[0])
        assert torch.equal(*results)
    fresh = build(layers=2)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x)[0], layer.eval()(x)[0])
    with pytest.raises(RuntimeError, match="gain_ih_l0"):
        build(layers=2, merge_mode="mul").load_state_dict(layer.state_dict(), strict=True)


def test_a_layer_that_knows_of_no_variants():
    """As one pickled by an earlier version, or converted from torch.nn: none of the new attributes is in it."""
    layer = birnn_ext.convert(torch.nn.LSTM(3, 4, bidirectional=True))
    assert not {"variant", "init", "unit_forget_bias", "_norm_names"} & set(vars(layer))
    again = pickle.loads(pickle.dumps(layer))
    x = torch.randn(T, B, 3)
    assert torch.equal(again(x)[0], layer(x)[0])
    again.reset_parameters()
    output, _, (h, c) = again(x, reset=resets(), return_states=True)
    assert output.shape == (T, B, 8) and h.shape == c.shape == (T, B, 2, 4)


@pytest.mark.parametrize("name", ALL)
def test_revert_names_the_variant(name):
    model = torch.nn.ModuleList([birnn_ext.GRU(3, 4), birnn_ext.LSTM(3, 4, bidirectional=True, **{name: ALL[name]})])
    with pytest.raises(ValueError, match=f"revert: torch.nn has no LSTM with {name}={ALL[name]!r}"):
        birnn_ext.revert(model)
    assert [type(m) for m in model] == [birnn_ext.GRU, birnn_ext.LSTM]  # nothing was changed
    started = birnn_ext.LSTM(3, 4, init="orthogonal", unit_forget_bias=True)  # a start is no variant
    assert type(birnn_ext.revert(started)) is torch.nn.LSTM


# ------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("mode, training", [("RNN_TANH", False), ("LSTM", True), ("GRU", False)])
def test_gradcheck(mode, training):
    layer = build(mode, merge_mode="mul", recurrent_dropout=0.3, zoneout=0.2, layer_norm=True).train(training)
    names, weights = zip(*layer.named_parameters(), strict=True)
    x, reset = data(3, 2).requires_grad_(), resets(3, 2)

    def run(x, *values):
        torch.manual_seed(3)
        given = dict(zip(names, values, strict=True))
        return tuple(
            compare.tensors(functional_call(layer, given, (x,), {"lengths": [3, 2], "reset": reset, "return_states": True}))
        )

    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *weights), fast_mode=True)


@modes
def test_function_transforms(mode):
    layer = build(mode).eval()
    samples, reset = data(2, 3, 2), resets(3, 2)

    def output(x):
        return layer(x, reset=reset)[0]

    def loss(x):
        return output(x).square().sum()

    torch.testing.assert_close(vmap(output)(samples), torch.stack([output(x) for x in samples]))
    jacobian = torch.autograd.functional.jacobian(output, samples[0])
    torch.testing.assert_close(jacrev(output)(samples[0]), jacobian)
    torch.testing.assert_close(jacfwd(output)(samples[0]), jacobian)
    second = torch.autograd.functional.hessian(loss, samples[0])
    torch.testing.assert_close(hessian(loss)(samples[0]), second)


def test_per_sample_gradients_and_ensembles():
    members = [build("LSTM").eval() for _ in range(2)]
    weights, _ = stack_module_state(members)
    x = data(2, T, B)

    def loss(weights, x):
        return functional_call(members[0], weights, (x,), {"reset": reset})[0].square().sum()

    reset = resets()
    found = vmap(grad(loss))(weights, x)
    for i, member in enumerate(members):
        expected = torch.autograd.grad(member(x[i], reset=reset)[0].square().sum(), list(member.parameters()))
        for name, right in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[name][i], right)


def test_vmap_draws_as_its_randomness_says():
    layer, x = build("GRU", recurrent_dropout=0.5, zoneout=0.5, weight_drop=0.5), data(T, B).expand(3, T, B, I)
    same = vmap(lambda x: layer(x)[0], randomness="same")(x)
    different = vmap(lambda x: layer(x)[0], randomness="different")(x)
    assert torch.equal(same[0], same[1]) and compare.differs(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: layer(x)[0])(x)


# ------------------------------------------------------------------------- compile, export, other dtypes


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiles_whole_and_for_all_sizes(fresh_compiler):
    layer = build("LSTM", merge_mode="mean", zoneout=0.2, layer_norm=True).eval()
    counter, graphs = CompileCounterWithBackend("aot_eager"), None
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for steps, rows in [(5, 7), (7, 7), (20, 2)]:
        x, reset, lengths = data(steps, rows), resets(steps, rows), torch.randint(0, steps + 1, (rows,))
        results = []
        for module in (layer, compiled):
            leaf = x.clone().requires_grad_()
            found = compare.tensors(module(leaf, lengths=lengths, reset=reset, return_states=True))
            total = sum(f.sin().sum() for f in found)
            results.append((*found, *torch.autograd.grad(total, [leaf, *layer.parameters()])))
        torch.testing.assert_close(*results)
        graphs = graphs or counter.frame_count
    assert counter.frame_count == graphs


def test_training_compiles(fresh_compiler):
    """Masks are drawn in the graph: anew in every call, and the same under the same seed."""
    layer, x = build("GRU", layers=2), data()
    compiled, runs = torch.compile(layer, fullgraph=True, backend="aot_eager"), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        loss = compiled(x)[0].sum()
        runs.append((loss, *torch.autograd.grad(loss, list(layer.parameters()))))
    assert all(map(torch.equal, runs[0], runs[1])) and compare.differs(runs[0], runs[2])


def test_compiles_without_gradients_and_under_autocast(fresh_compiler):
    """The op is called by itself there; what it computes inside stays in float32."""
    layer, x = birnn_ext.BiRNN(I, H, layer_norm=True, merge_mode=None), torch.randn(T, B, I)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(x), layer(x)
    assert all(map(torch.equal, compare.tensors(found), compare.tensors(expected)))


def test_compiles_around_vmap(fresh_compiler):
    """The op knows no vmap: there the loop itself is compiled."""
    layer, x = build("GRU", zoneout=0.2).eval(), data(2, T, B)
    compiled = torch.compile(lambda x: vmap(lambda s: layer(s)[0])(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.stack([layer(s)[0] for s in x]))


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
def test_exports_with_dynamic_time_and_batch(batch_first):
    layer = build("LSTM", layers=2, batch_first=batch_first, **ALL).eval()
    sizes = {0: torch.export.Dim("first"), 1: torch.export.Dim("second")}
    given = {"reset": resets(5, 3), "return_states": True}
    program = torch.export.export(
        layer, (data(5, 3),), given, dynamic_shapes={"input": sizes, "reset": sizes, "return_states": None}
    )
    stored = io.BytesIO()
    torch.export.save(program.run_decompositions(), stored)
    stored.seek(0)
    run = torch.export.load(stored).module()
    for shape in [(5, 3), (1, 1), (20, 7)]:
        x, reset = data(*shape), resets(*shape)
        found, expected = run(x, reset=reset, return_states=True), layer(x, reset=reset, return_states=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_the_ops_are_as_torch_wants_them(mode):
    """opcheck: schema, fake tensors, functionalisation; its modes are also those that switch autograd off below."""
    G, lstm = {"LSTM": 4, "GRU": 3}[mode], mode == "LSTM"

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    def direction():
        weights = normal(G * H, I), normal(G * H, H), normal(G * H), normal(G * H), None, normal(G * H), normal(G * H)
        return (*weights, *((normal(H), normal(H)) if lstm else (None, None)))

    zones = [torch.rand(2, T, B, H, dtype=torch.float64), torch.rand(2, T, 1, 1, dtype=torch.float64) if lstm else None]
    batch_first, lead = (False, (T, B)) if lstm else (True, (B, T))
    settings = (mode, batch_first, lstm)
    tensors = [data(*lead), normal(2, B, H), normal(2, B, H) if lstm else None, torch.tensor([T, 0, 2])]
    tensors += [*direction(), *direction(), torch.rand(2, B, H, dtype=torch.float64), *zones]
    ops = torch.ops.birnn_ext
    torch.library.opcheck(ops.varied_layer.default, (tensors, *settings))
    outputs = ops.varied_layer(tensors, *settings)
    grads = [torch.randn_like(t) if t.numel() else None for t in outputs]
    wanted = [i < 22 and i != 3 and t is not None for i, t in enumerate(tensors)]
    torch.library.opcheck(ops.varied_layer_backward.default, (grads, tensors, wanted, *settings))
    with FlopCounterMode(display=False):
        ops.varied_layer_backward(grads, tensors, wanted, *settings)


@modes
def test_autocast(mode):
    plain, layer = birnn_ext.BiRNN(I, H, mode=mode), birnn_ext.BiRNN(I, H, mode=mode, **ALL).eval()
    x = torch.randn(T, B, I)
    exact = compare.tensors(layer(x, return_states=True))
    with torch.autocast("cpu", torch.bfloat16):
        dtype = plain(x)[0].dtype
        found = compare.tensors(layer(x, return_states=True))
    for f, right in zip(found, exact, strict=True):
        assert f.dtype == dtype
        torch.testing.assert_close(f.float(), right, atol=1e-2, rtol=1e-2)


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(mode, dtype):
    layer = birnn_ext.BiRNN(I, H, mode=mode, init="orthogonal", **ALL).to(dtype)
    x, reset = torch.randn(T, B, I).to(dtype), resets()
    layer(x, reset=reset)[0].sum().backward()
    found = layer.eval()(x, reset=reset)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), compare.wide(layer)(x.double(), reset=reset)[0], atol=5e-2, rtol=5e-2)


def test_meta_device():
    layer = birnn_ext.BiRNN(I, H, mode="LSTM", device="meta", init="orthogonal", unit_forget_bias=True, **ALL)
    output, _, (h, c) = layer(torch.randn(T, B, I, device="meta"), reset=resets().to("meta"), return_states=True)
    assert output.is_meta and output.shape == (T, B, H) and h.shape == c.shape == (T, B, 2, H)


# -------------------------------------------------------------------------------------------------- docs

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "variants.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_the_page(example):
    exec(compile(example, PAGE, "exec"), {"torch": torch, "birnn_ext": birnn_ext})


def test_the_page_names_every_variant():
    titles = "\n".join(line for line in PAGE.read_text().splitlines() if line.startswith("## "))
    assert all(name in titles for name in (*ALL, "reset", "return_states", "init", "unit_forget_bias"))
    assert len(EXAMPLES) == titles.count("## ")
