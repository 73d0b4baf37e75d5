"""A bidirectional layer as a JAX user writes it, under jit, as a contender: the projection of the whole sequence, then
lax.scan over time, one scan for each direction; gradients by jax.vjp. Inference and training, any number of
layers, unequal lengths by masks, float32 on a CPU. The contract is in ../contenders.py.

Needed: `pip install jax`.

Threads: JAX makes its pool once in a process, one thread for each core that it may use then. It therefore starts on as many
cores as the case has threads, and the calling thread is kept on the same cores while it computes; a case with another number
of threads needs a process of its own.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os

import torch

from ..contenders import Contender


class JaxScan(Contender):
    name = "jax"
    own_threads = True
    # What this process's JAX was started with: (number of threads, set of cores).
    started = None

    def why_not(self, case):
        if importlib.util.find_spec("jax") is None:
            return "Python package jax is not installed"
        if (case.dtype, case.device) != ("float32", "cpu"):
            return "takes part with float32 on the CPU only"
        if not hasattr(os, "sched_setaffinity"):
            return "its threads cannot be counted on this system"
        if self.started and self.started[0] != case.threads:
            return f"has started with {self.started[0]} threads, which another number of threads needs a process without"
        return None

    def version(self):
        return importlib.metadata.version("jax")

    def prepare(self, problem):
        self.problem = problem
        self._start(problem.case.threads)
        import jax

        self.weights = {name: _to_jax(weight) for name, weight in problem.weights.items()}
        self.inputs = [_to_jax(x) for x in problem.inputs]
        lengths = None if problem.lengths is None else _to_jax(problem.lengths.int())
        layer = functools.partial(_layers, problem.case)
        if problem.case.training:
            out_grad, state_grad = _to_jax(problem.out_grad), _to_jax(problem.state_grad)

            @jax.jit
            def step(weights, x, lengths, out_grad, state_grad):
                (output, states), back = jax.vjp(lambda weights, x: layer(weights, x, lengths), weights, x)
                return (None, (output, states)), back((out_grad, tuple(state_grad for _ in states)))

            self.call = lambda x: step(self.weights, x, lengths, out_grad, state_grad)
        else:
            forward = jax.jit(layer)
            self.call = lambda x: ((None, forward(self.weights, x, lengths)), None)

    def _start(self, threads):
        import jax

        # Inline, not on yet another thread.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        if JaxScan.started is None:
            cores = set(sorted(os.sched_getaffinity(0))[:threads])
            JaxScan.started = threads, cores
            with _on(cores):
                jax.devices("cpu")

    def _run(self, i):
        import jax

        with _on(self.started[1]):
            return jax.block_until_ready(self.call(self.inputs[i]))

    def run(self, i):
        (_, (output, states)), _ = self._run(i)
        return torch.from_dlpack(output), tuple(map(torch.from_dlpack, states))

    def results(self, i):
        (_, (output, states)), gradients = self._run(i)
        found = {"output": output} | dict(zip(("h_n", "c_n"), states, strict=False))
        if gradients is not None:
            found |= {f"gradient of {name}": gradient for name, gradient in gradients[0].items()}
            found["gradient of input"] = gradients[1]
        return {name: torch.from_dlpack(array).clone() for name, array in found.items()}


def _to_jax(tensor):
    import jax

    return jax.device_put(tensor.numpy().copy(), jax.devices("cpu")[0])


@contextlib.contextmanager
def _on(cores):
    """The calling thread, and those that it starts, on these cores alone."""
    before = os.sched_getaffinity(0)
    if before == cores:
        yield
        return
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- the layer ---


def _layers(case, weights, x, lengths):
    """x [T, B, I] -> (output [T, B, 2H], states: h_n or h_n and c_n [2L, B, H])."""
    import jax.numpy as jnp

    states = []
    for k in range(case.shape.L):
        outputs = []
        for suffix in ("", "_reverse"):
            of = {name: weights[f"{name}_l{k}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            output, state = _direction(case.mode, of, x, lengths, reverse=bool(suffix))
            outputs.append(output)
            states.append(state)
        x = jnp.concatenate(outputs, axis=2)
    return x, tuple(map(jnp.stack, zip(*states, strict=True)))


def _direction(mode, of, x, lengths, reverse):
    """(output [T, B, H], states [B, H]) of one direction with its weights `of`. Rows that have ended, or in reverse have not
    begun, keep their state."""
    import jax
    import jax.numpy as jnp

    bias, late = of["bias_ih"], of["bias_hh"]
    if mode != "GRU":  # only the GRU has use for a bias inside the recurrence
        bias, late = bias + late, 0.0
    projected = x @ of["weight_ih"].T + bias
    recurrent = of["weight_hh"].T
    zeros = jnp.zeros((x.shape[1], recurrent.shape[0]), x.dtype)

    def step(states, now):
        projection, alive = now
        new = CELLS[mode](projection, states[0] @ recurrent + late, *states)
        if alive is None:
            return new, new[0]
        new = tuple(jnp.where(alive[:, None], there, before) for there, before in zip(new, states, strict=True))
        return new, jnp.where(alive[:, None], new[0], 0.0)

    alive = None if lengths is None else jnp.arange(len(x))[:, None] < lengths
    states, output = jax.lax.scan(step, (zeros,) * (2 if mode == "LSTM" else 1), (projected, alive), reverse=reverse)
    return output, states


def _gru(x, h_product, h):
    import jax
    import jax.numpy as jnp

    (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, axis=1), jnp.split(h_product, 3, axis=1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * hn)
    return (n + z * (h - n),)


def _lstm(x, h_product, h, c):
    import jax
    import jax.numpy as jnp

    i, f, g, o = jnp.split(x + h_product, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _rnn_tanh(x, h_product, h):
    import jax.numpy as jnp

    return (jnp.tanh(x + h_product),)


def _rnn_relu(x, h_product, h):
    import jax

    return (jax.nn.relu(x + h_product),)


# As torch.nn documents them, gates in its order.
CELLS = {"GRU": _gru, "LSTM": _lstm, "RNN_TANH": _rnn_tanh, "RNN_RELU": _rnn_relu}
