"""Every variant through everything that PyTorch does with a layer: one table of variants, one test for each use.

What the variants compute is checked elsewhere (tests/test_variants.py), and so are mixtures, randomness under vmap and the
ops themselves (tests/test_variants_module.py); several processes: test_distributed.py.
"""

import copy
import io
import pickle

import compare
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import birnn_ext
from pytorch.table import VARIANTS

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")
T, B, I, H = 4, 3, 3, 4  # noqa: E741
variants = pytest.mark.parametrize("name", VARIANTS)


class Model(nn.Module):
    """(x, lengths, reset) -> the results of a layer with a variant, flat; `reset` is for those that take it."""

    def __init__(self, name, dtype=torch.float64, **options):
        super().__init__()
        case = VARIANTS[name]
        self.rnn = birnn_ext.BiRNN(I, H, 2, mode=case.mode, dtype=dtype, **case.options, **options)
        self.given = {"return_states": True} if case.states else {}
        self.resets = case.reset

    def forward(self, x, lengths=None, reset=None):
        given = {**self.given, "reset": reset} if self.resets else self.given
        return tuple(compare.tensors(self.rnn(x, lengths=lengths, **given)))


def batch(steps=T, rows=B, dtype=torch.float64):
    return torch.randn(steps, rows, I, dtype=dtype), torch.randint(0, steps + 1, (rows,)), torch.rand(steps, rows) < 0.4


def learn(model, x, *rest, seed=0, weights=None):
    """Results, and gradients of the input and all weights."""
    torch.manual_seed(seed)
    leaf = x.clone().requires_grad_()
    results = model(leaf, *rest)
    total = sum((t.double() * t.double().cos()).sum() for t in results)
    return [*results, *torch.autograd.grad(total, [leaf, *(weights or model.parameters())])]


# ------------------------------------------------------------------------------------------ compile, export


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiles(name, backend, training):
    model = Model(name).train(training)
    counter, first = CompileCounterWithBackend(backend), None
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for steps, rows in [(5, 7), (9, 4), (12, 2)]:
        given = batch(steps, rows)
        torch.testing.assert_close(learn(compiled, *given), learn(model, *given))
        first = first or counter.frame_count
    assert counter.frame_count == first


@variants
def test_one_graph_for_all_sizes(name, fresh_compiler):
    compiles(name, "aot_eager", training=False)


@pytest.mark.parametrize("name", ["recurrent_dropout", "zoneout", "weight_drop"])
def test_one_graph_for_all_sizes_in_training(name, fresh_compiler):
    """The same seed, the same masks."""
    compiles(name, "aot_eager", training=True)


def test_generated_code(fresh_compiler):
    compiles("reset", "inductor", training=True)


@variants
def test_export(name):
    """Dynamic time and batch, decomposed, and from a file."""
    model = Model(name).eval()
    sizes, rows = {0: Dim("T"), 1: Dim("B")}, {0: Dim("B")}
    program = torch.export.export(model, batch(5, 4), dynamic_shapes=(sizes, rows, sizes)).run_decompositions()
    calls = [str(node.target) for node in program.graph.nodes if "birnn_ext" in str(node.target)]
    kind = "varied_layer" if VARIANTS[name].inside else "layer"
    assert calls == [f"birnn_ext.{kind}.default"] * 2  # one for each layer, however long T is
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    run = torch.export.load(file).module()
    for given in (batch(5, 4), batch(1, 1), batch(11, 7)):
        torch.testing.assert_close(run(*given), model(*given), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ahead_of_time(tmp_path):
    """What needs no loop in Python runs without Python's code."""
    model, sizes = Model("reset_and_states").eval(), {0: Dim("T"), 1: Dim("B")}
    program = torch.export.export(model, batch(5, 4), dynamic_shapes=(sizes, {0: Dim("B")}, sizes))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for given in (batch(5, 4), batch(1, 1), batch(11, 7)):
        torch.testing.assert_close(tuple(run(*given)), model(*given), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
@variants
def test_onnx(name, tmp_path):
    """The standard node and the same numbers, or an error that names what has no node."""
    pytest.importorskip("onnxscript", reason="the exporter needs the package onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="running the file needs the package onnxruntime")
    model = Model(name, torch.float32).eval()
    sizes, rows = {0: Dim("T"), 1: Dim("B")}, {0: Dim("B")}

    def export():
        shapes = (sizes, rows, sizes)
        return birnn_ext.onnx_export(model, batch(5, 4, torch.float32), dynamic_shapes=shapes, verbose=False)

    if VARIANTS[name].onnx:
        with pytest.raises((ValueError, torch.onnx.errors.OnnxExporterError), match=VARIANTS[name].onnx):
            export()
        return
    export().save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for given in (batch(5, 4, torch.float32), batch(11, 2, torch.float32)):
        inputs = session.get_inputs()
        named = {i.name: t.numpy() for i, t in zip(inputs, given[: len(inputs)], strict=True)}
        for found, right in zip(session.run(None, named), model(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), right)


@pytest.mark.filterwarnings("ignore")
@variants
def test_trace(name):
    """One trace for every T and B; where a step is varied, an error that names torch.export."""
    model = Model(name).eval()
    with torch.no_grad():
        if VARIANTS[name].inside:
            with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record a layer with .*: use torch.export"):
                torch.jit.trace(model, batch(5, 4))
            return
        traced = torch.jit.trace(model, batch(5, 4))
        for given in (batch(5, 4), batch(1, 1), batch(11, 7)):
            torch.testing.assert_close(traced(*given), model(*given), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="trace under torch.no_grad"):
        torch.jit.trace(model, batch(5, 4))


# ---------------------------------------------------------------------------------- derivatives of all kinds


def loss_of(model):
    def loss(weights, x, lengths, reset):
        return sum(t.square().sum() for t in functional_call(model, weights, (x, lengths, reset)))

    return loss


@variants
def test_gradients_per_sample_and_ensembles(name):
    """In training: randomness="same" gives every sample the masks of the same seed."""
    model, samples = Model(name), [batch() for _ in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    weights = {key: w.detach() for key, w in model.named_parameters()}
    torch.manual_seed(1)
    found = vmap(grad(loss_of(model)), (None, 0, 0, 0), randomness="same")(weights, *stacked)
    for i, sample in enumerate(samples):
        torch.manual_seed(1)
        torch.testing.assert_close({key: g[i] for key, g in found.items()}, grad(loss_of(model))(weights, *sample))

    members = [Model(name).eval() for _ in range(2)]
    of_all, _ = stack_module_state(members)
    outputs = vmap(lambda w: functional_call(members[0], w, samples[0]))(of_all)
    for i, member in enumerate(members):
        torch.testing.assert_close(tuple(t[i] for t in outputs), member(*samples[0]))


@variants
def test_jacobians_and_second_derivatives(name):
    """Of five sums over all results, since the step by step computation behind these is slow."""
    model, (x, lengths, reset) = Model(name).eval(), batch(3, 2)
    shares = torch.randn(5, sum(t.numel() for t in model(x, lengths, reset)), dtype=torch.float64)

    def output(x):
        return shares @ torch.cat([t.flatten() for t in model(x, lengths, reset)])

    jacobian = torch.autograd.functional.jacobian(output, x)
    torch.testing.assert_close(jacrev(output)(x), jacobian)
    torch.testing.assert_close(jacfwd(output)(x), jacobian)
    assert torch.autograd.gradgradcheck(output, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("reentrant", [False, True], ids=["recorded", "reentrant"])
@variants
def test_checkpoint_and_hooks(name, reentrant):
    """Computed again in backward, with the masks of the first time; and saved tensors may go elsewhere meanwhile."""
    model, given = Model(name), batch()
    expected = learn(model, *given)

    def again(*given):
        return checkpoint(model, *given, use_reentrant=reentrant)

    if reentrant:  # knows .backward() only
        leaf = given[0].clone().requires_grad_()
        torch.manual_seed(0)
        results = again(leaf, *given[1:])
        sum((t * t.cos()).sum() for t in results).backward()
        found = [*results, leaf.grad, *(w.grad for w in model.parameters())]
    else:
        with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
            found = learn(again, *given, weights=model.parameters())
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------------------------------- dtypes and copies


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@variants
def test_autocast(name, training):
    """The dtypes of a plain layer; computed in float32, so as near as rounding the result leaves it."""
    case, (x, lengths, reset) = VARIANTS[name], batch(dtype=torch.float32)
    model = Model(name, torch.float32).train(training)
    exact = learn(model, x, lengths, reset)
    with torch.autocast("cpu", torch.bfloat16):
        dtype = birnn_ext.BiRNN(I, H, mode=case.mode)(x)[0].dtype
        found = learn(model, x, lengths, reset)
    outputs = len(found) - 1 - len(list(model.parameters()))
    for i, (f, right) in enumerate(zip(found, exact, strict=True)):
        assert f.dtype == (dtype if i < outputs else torch.float32)
        assert compare.error(f, right) <= 0.04 * max(1, right.abs().max().item())


@variants
def test_copies(name):
    """deepcopy, pickle, state_dict through a file, functional_call."""
    model, given = Model(name), batch()
    expected = learn(model, *given)
    fresh, file = Model(name), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert repr(other.rnn) == repr(model.rnn)
        torch.testing.assert_close(learn(other, *given), expected, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- forms of input


@variants
def test_packed_and_nested(name):
    """The numbers of `lengths`, in the form of the input, merged halves and states included."""
    case = VARIANTS[name]
    layer = Model(name, batch_first=True).rnn
    x, _, reset = batch(B, T)  # [B, T, ...]
    lengths, given = torch.tensor([2, T, 3]), {"return_states": case.states}

    def call(input, **more):
        torch.manual_seed(3)
        output, state, *states = layer(input, **more, **given)
        return compare.tensors(state), [t for part in (output, *states) for t in parts(part)]

    def parts(value):
        return [p for v in value for p in parts(v)] if type(value) is tuple else [value]

    def pack(t):
        return pack_padded_sequence(t, lengths, batch_first=True, enforce_sorted=False)

    resets = {"reset": reset} if case.reset else {}
    ends, outputs = call(x, lengths=lengths, **resets)
    packed_ends, packed = call(pack(x), **({"reset": pack(reset)} if case.reset else {}))
    torch.testing.assert_close(packed_ends, ends)
    torch.testing.assert_close([p.data for p in packed], [pack(t).data for t in outputs])

    rows = torch.nested.as_nested_tensor([row[:n] for row, n in zip(x, lengths, strict=True)], layout=torch.jagged)
    if case.reset:
        with pytest.raises(ValueError, match="reset should be None for a nested tensor: pad the rows and give lengths"):
            layer(rows, reset=reset)
        return
    nested_ends, nested = call(rows)
    torch.testing.assert_close(nested_ends, ends)
    for found, right in zip(nested, outputs, strict=True):
        for row, whole, n in zip(found.unbind(), right, lengths, strict=True):
            torch.testing.assert_close(row, whole[:n])
