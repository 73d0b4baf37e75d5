"""Nobody is timed before being right: compares what a contender computes with a float64 run of torch.nn.
Times nothing.

The rule: an error of at most twice that of torch.nn in the same dtype, plus a few units in the last place of
the largest element of the tensor. (torch.nn is sometimes exact by luck, hence the second term.) Errors are
largest absolute differences per tensor.
"""

import torch

from .contenders import Torch

ULPS = 16
# TF32 keeps 10 bits of the fraction of what it multiplies, and that is then the last place. Twice torch.nn's error
# does not cover it: cuDNN may keep a product in float32 that others make in TF32, such as the recurrent one.
TF32_EPS = 2.0**-10
# Other libraries owe us no such accuracy; this only asks that they compute the same thing, relative to the largest element.
PEER_TOLERANCE = 1e-4


class CheckFailed(Exception):
    """A contender computes something else than torch.nn."""


class Judge:
    """Holds the truth of one problem (torch.nn in float64, on every input) and torch.nn's own error in the
    problem's dtype. `tf32`: products of float32 are made in TF32."""

    def __init__(self, problem, tf32=False):
        self.problem = problem
        self.eps = TF32_EPS if tf32 else torch.finfo(problem.inputs[0].dtype).eps
        oracle, theirs = Torch(), Torch()
        oracle.prepare(problem.to(torch.float64))
        theirs.prepare(problem)
        self.truth = [oracle.results(i) for i in range(len(problem.inputs))]
        self.torch_error = [self._errors(i, theirs.results(i)) for i in range(len(problem.inputs))]

    def _errors(self, i, found):
        return {name: _largest(found[name].double() - truth) for name, truth in self.truth[i].items() if name in found}

    def check(self, contender, peer=False):
        """The largest error of a prepared contender in any tensor, relative to that tensor's largest element.
        CheckFailed, naming the tensor, where the rule is broken. Of a peer everything is asked in training, in
        inference the output alone, to PEER_TOLERANCE."""
        worst = 0.0
        for i, truth in enumerate(self.truth):
            found = contender.results(i)
            asked = {"output"} if peer and not self.problem.case.training else truth.keys()
            if missing := asked - found.keys():
                raise CheckFailed(f"{contender.name} did not compute: {', '.join(sorted(missing))}")
            for name in asked:
                if found[name].shape != truth[name].shape:
                    shapes = f"{list(found[name].shape)}, not {list(truth[name].shape)}"
                    raise CheckFailed(f"{contender.name}: {name} has shape {shapes}")
            errors = self._errors(i, found)
            for name in asked:
                size = max(_largest(truth[name]), self.eps)
                allowed = 2 * self.torch_error[i][name] + ULPS * self.eps * size
                if peer:
                    allowed = max(allowed, PEER_TOLERANCE * size)
                # Not `>`: a NaN must fail as well.
                if not errors[name] <= allowed:
                    raise CheckFailed(
                        f"{contender.name} is wrong in {self.problem.case.key}: "
                        f"{name} differs from float64 by {errors[name]:.2e}; "
                        f"torch.nn differs by {self.torch_error[i][name]:.2e}, allowed is {allowed:.2e}"
                    )
                worst = max(worst, errors[name] / size)
        return worst

    def difference(self, other):
        """What the output of another problem, in float64, differs by from this one's, relative to the largest element."""
        oracle = Torch()
        oracle.prepare(other.to(torch.float64))
        found = [(oracle.results(i)["output"], truth["output"]) for i, truth in enumerate(self.truth)]
        return max(_largest(a - b) / max(_largest(b), self.eps) for a, b in found)

    def witness(self, contender, i, output):
        """Judges an output that was just timed by a sample of its elements, which costs next to nothing.
        CheckFailed if it is not the output for input i: of another input, stale, or never written."""
        truth = self.truth[i]["output"].flatten()
        step = max(1, len(truth) // 64)
        difference = _largest(output.detach().flatten()[::step].double() - truth[::step])
        if not difference <= max(100 * self.torch_error[i]["output"], PEER_TOLERANCE):
            raise CheckFailed(
                f"{contender} returned something else when timed in {self.problem.case.key}: off by {difference:.2e}"
            )


def _largest(tensor):
    return tensor.abs().max().item() if tensor.numel() else 0.0
