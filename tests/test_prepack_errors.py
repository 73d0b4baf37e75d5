"""What prepack refuses, and what a prepacked layer refuses when it is called: by name, and with nothing changed."""

import copy
import warnings

import pytest
import torch
from torch import nn

import birnn_ext
from birnn_ext.prepack import Prepacked

pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")


@pytest.fixture(autouse=True)
def no_grad(guard):
    with torch.no_grad():
        yield


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_what_cannot_be_packed_leaves_all_as_it_was():
    class Own(birnn_ext.GRU):
        pass

    good = birnn_ext.GRU(5, 9)
    infinite = birnn_ext.GRU(5, 9)
    infinite.weight_hh_l0[0, 0] = torch.inf
    large = birnn_ext.GRU(5, 9)
    large.weight_hh_l0[0, 0] = torch.finfo(torch.float32).max
    for model, dtype, match in (
        (
            nn.Sequential(good, birnn_ext.LSTM(5, 9, zoneout=0.1)),
            None,
            "expected layers without a variant, got 1 with zoneout=0.1",
        ),
        (nn.Sequential(good, birnn_ext.GRU(5, 9, device="meta")), None, "expected weights on cpu, got 1 on meta"),
        (nn.Sequential(good, birnn_ext.GRU(5, 9).to(torch.complex64)), None, "got 1 of torch.complex64"),
        (
            nn.Sequential(good, birnn_ext.GRU(5, 9).double()),
            torch.bfloat16,
            "can be packed as torch.bfloat16, got 1 of torch.float64",
        ),
        (nn.Sequential(good, infinite), torch.bfloat16, "finite as torch.bfloat16, got 1 that are not"),
        (nn.Sequential(good, large), torch.bfloat16, "finite as torch.bfloat16, got 1 that are not"),
        (nn.Sequential(good), torch.float16, "dtype should be None or torch.bfloat16, got torch.float16"),
        (nn.Linear(2, 2), None, "expected a model with layers of birnn_ext, got one with none"),
        (nn.GRU(2, 2), None, "expected a model with layers of birnn_ext, got one with none"),
        (Own(2, 2), None, "expected a model with layers of birnn_ext, got one with none"),
    ):
        with pytest.raises(ValueError, match=match):
            birnn_ext.prepack(model, dtype, inplace=True)
        assert type(good) is birnn_ext.GRU and len(list(good.parameters())) == 4
    older = nn.Sequential(good, birnn_ext.GRU(5, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(older[1], "weight_hh_l0")
    with pytest.raises(ValueError, match="got 1 with weight_hh_l0_g, weight_hh_l0_v: undo what made them"):
        birnn_ext.prepack(older, inplace=True)
    broken = nn.Sequential(good, birnn_ext.GRU(5, 9))
    broken[1].weight_hh_l0.data = torch.zeros(27, 8)
    with pytest.raises(RuntimeError, match="w_hh: expected shape"):
        birnn_ext.prepack(broken, inplace=True)
    assert type(good) is birnn_ext.GRU and len(list(good.parameters())) == 4
    with pytest.raises(ValueError, match="expected layers that are not prepacked yet"):
        birnn_ext.prepack(birnn_ext.prepack(good))
    with torch.device("meta"):
        fast = birnn_ext.prepack(good)
    fast(torch.randn(4, 3, 5))
    birnn_ext.prepack(infinite)  # float32 has infinity
    with pytest.raises(TypeError, match="prepack: model should be a torch.nn.Module, got int"):
        birnn_ext.prepack(3)
    with pytest.raises(TypeError, match="made by birnn_ext.prepack"):
        Prepacked()


def test_calls_that_are_refused():
    fast, x = birnn_ext.prepack(birnn_ext.GRU(5, 9, bidirectional=True)), torch.randn(4, 3, 5)
    with torch.enable_grad():
        with pytest.raises(RuntimeError, match="input requires grad, and a prepacked layer has no backward"):
            fast(x.clone().requires_grad_())
        with pytest.raises(RuntimeError, match="h_0 requires grad"):
            fast(x, torch.zeros(2, 3, 9, requires_grad=True))
        fast(x)
        for transform in (torch.func.jacfwd, torch.func.jacrev):
            with pytest.raises(RuntimeError, match="a prepacked layer has no"):
                transform(lambda x: fast(x)[0])(x)
        with pytest.raises(RuntimeError, match="a prepacked layer has no forward-mode derivatives"):
            torch.func.jvp(lambda x: fast(x)[0], (x,), (x,))
    with pytest.raises(RuntimeError, match="no parameters to draw anew"):
        fast.reset_parameters()
    with pytest.raises(RuntimeError, match="weight_hh_l0: a prepacked layer takes no parameters"):
        fast.weight_hh_l0 = nn.Parameter(torch.zeros(27, 9))
    for function in (birnn_ext.layout.unstack, lambda layer: birnn_ext.layout.trace(layer, x)):
        with pytest.raises(TypeError, match="should be a layer with weights of its own, got a prepacked one"):
            function(fast)
    with pytest.raises(ValueError, match="neither reset nor return_states"):
        fast(x, reset=torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="neither reset nor return_states"):
        fast(x, return_states=True)
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)"):
        fast(x.double())
    with pytest.raises(RuntimeError, match="packed weights, got Double"):
        copy.deepcopy(fast).double()(x.double())
    with pytest.raises(RuntimeError, match="input.size\\(-1\\) must be equal to input_size. Expected 5, got 4"):
        fast(x[..., 1:])
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        fast(x, torch.zeros(2, 2, 9))
    with pytest.raises(ValueError, match="lengths"):
        fast(x, lengths=[5, 1, 1])
    with pytest.raises(RuntimeError, match="prepacked layer is for the CPU, got input on meta"):
        fast(x.to("meta"))
