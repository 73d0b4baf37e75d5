"""Initialisation: torch.nn's by default, and what `init` and `unit_forget_bias` change of it."""

import compare
import pytest
import torch

import birnn_ext

MODES = ("RNN_TANH", "LSTM", "GRU")
modes = pytest.mark.parametrize("mode", MODES)


def build(mode, seed=0, **options):
    torch.manual_seed(seed)
    return compare.OURS[mode](5, 8, 2, bidirectional=True, **options)


@modes
def test_the_default_is_torch(mode):
    torch.manual_seed(0)
    theirs = compare.TORCH[mode](5, 8, 2, bidirectional=True)
    for (name, a), (_, b) in zip(theirs.named_parameters(), build(mode).named_parameters(), strict=True):
        assert torch.equal(a, b), name
    # Whatever else is asked for, what torch.nn draws is drawn as there.
    options = {"layer_norm": True, "init": "orthogonal"}
    held = build(mode, **options).state_dict()
    for name, a in theirs.named_parameters():
        assert torch.equal(a, held[name]) == ("weight_hh" not in name)


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_orthogonal(mode, dtype):
    layer = build(mode, init="orthogonal", dtype=dtype)
    blocks = [b.double() for n, w in layer.named_parameters() if n.startswith("weight_hh") for b in w.detach().split(8)]
    assert len(blocks) == 4 * {"RNN_TANH": 1, "LSTM": 4, "GRU": 3}[mode]
    for block in blocks:
        identity = torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(block @ block.T, identity, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
    assert compare.differs(blocks[0], blocks[1])


def test_orthogonal_with_a_projection():
    layer = birnn_ext.LSTM(5, 8, proj_size=3, init="orthogonal", dtype=torch.float64)
    for block in layer.weight_hh_l0.detach().split(8):
        torch.testing.assert_close(block.T @ block, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("init", ["torch", "orthogonal"])
def test_unit_forget_bias(init):
    plain, layer = build("LSTM"), build("LSTM", unit_forget_bias=True, init=init)
    for name, bias in layer.named_parameters():
        if name.startswith("bias"):
            i, f, g, o = bias.detach().split(8)
            assert (f == (1.0 if "_ih_" in name else 0.0)).all()
            for k, gate in ((0, i), (2, g), (3, o)):
                assert torch.equal(gate, getattr(plain, name).detach().split(8)[k])


def test_reset_parameters_draws_all_of_it_again():
    layer = build("LSTM", init="orthogonal", unit_forget_bias=True, layer_norm=True)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(7)
    torch.manual_seed(0)
    layer.reset_parameters()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert (layer.gain_hh_l1_reverse == 1).all() and (layer.bias_c_l0 == 0).all()
