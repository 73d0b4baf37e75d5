"""Who competes: birnn_ext and torch.nn, one class each with `prepare` and `run`. Other libraries are in
peers/.

The contract of a contender:
    name            as printed
    own_threads     True where it keeps a thread pool of its own beside PyTorch's
    why_not(case)   a sentence why it cannot take part in the case, or None
    prepare(problem)    takes weights and inputs over; nothing of this is timed
    run(i)          one pass over inputs[i]; returns (output [T, B, 2H], states): the thing that is timed
    version()       of other libraries only: as it is written into the result
    results(i)      runs, and returns everything computed by name, gradients too: what check.py compares
"""

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .problem import torch_layer
from .shapes import MODES

THEIRS, OURS, UNPACKED = "torch.nn", "birnn_ext", "birnn_ext, not packed beforehand"
PACKED = {"float32": None, "bfloat16": torch.bfloat16}  # as birnn_ext.prepack takes them


class Contender:
    own_threads = False

    def why_not(self, case):
        return None


class ModuleContender(Contender):
    """What both module libraries share: the passes. A subclass makes the module and calls it."""

    def make(self, case, dtype, device):
        """The module of the case, weights arbitrary."""
        raise NotImplementedError

    def call(self, x):
        """(output padded to T, h_n or (h_n, c_n)) for x [T, B, I]."""
        raise NotImplementedError

    def prepare(self, problem):
        self.problem = problem
        weight = next(iter(problem.weights.values()))
        self.module = self.make(problem.case, weight.dtype, weight.device)
        self.module.load_state_dict(problem.weights, strict=True)
        self.module.train(problem.case.training)
        # Leaves of their own, so that no contender finds another one's gradient in there.
        self.inputs = [x.detach().clone().requires_grad_(problem.case.training) for x in problem.inputs]

    def run(self, i):
        if self.problem.case.training:
            return self._step(self.inputs[i])
        with torch.inference_mode():
            return self._forward(self.inputs[i])

    def _forward(self, x):
        output, states = self.call(x)
        return output, states if isinstance(states, tuple) else (states,)

    def _step(self, x):
        """Forward, and backward from given gradients of all outputs to x and all weights; the old gradients are dropped as
        part of it, as in any training loop. (A loss computed here would be timed with the layer.)"""
        x.grad = None
        self.module.zero_grad(set_to_none=True)
        output, states = self._forward(x)
        torch.autograd.backward((output, *states), (self.problem.out_grad, *[self.problem.state_grad] * len(states)))
        return output.detach(), tuple(state.detach() for state in states)

    def results(self, i):
        output, states = self.run(i)
        found = {"output": output} | dict(zip(("h_n", "c_n"), states, strict=False))
        if self.problem.case.training:
            found["gradient of input"] = self.inputs[i].grad
            for name, parameter in self.module.named_parameters():
                found[f"gradient of {name}"] = parameter.grad
        return found


class Torch(ModuleContender):
    """torch.nn's layer, eager. Ragged batches go through PackedSequence and come back padded: what a user
    has, and wants."""

    name = THEIRS

    def make(self, case, dtype, device):
        return torch_layer(case, dtype, device)

    def call(self, x):
        lengths = self.problem.lengths
        if lengths is None:
            return self.module(x)
        output, states = self.module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=len(x))[0], states


class Ours(ModuleContender):
    """birnn_ext's layer; ragged batches by `lengths`. `packed`: None, or "float32" or "bfloat16", in which its weights are
    packed beforehand; inference only. `name`: of one that stands beside another."""

    name = OURS

    def __init__(self, packed=None, name=None):
        self.packed, self.name = packed, name or self.name

    def prepare(self, problem):
        super().prepare(problem)
        if self.packed:
            import birnn_ext

            birnn_ext.prepack(self.module, PACKED[self.packed], inplace=True)

    def make(self, case, dtype, device):
        import birnn_ext

        kind, arguments, _ = MODES[case.mode]
        shape = case.shape
        make = getattr(birnn_ext, kind)
        return make(shape.I, shape.H, shape.L, bidirectional=True, dtype=dtype, device=device, **arguments)

    def call(self, x):
        return self.module(x, lengths=self.problem.lengths)
