"""Two processes learn what one learns from the joined batch: DistributedDataParallel and fully_shard (FSDP2), by gloo.

Plain layers, and every variant.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import birnn_ext
from pytorch.table import VARIANTS, Case

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
ROOT = Path(__file__).parents[2]
STEPS, WORLD = 3, 2
CASES = {"GRU": Case("GRU"), "LSTM": Case("LSTM"), **VARIANTS}


class Tagger(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case
        self.rnn = birnn_ext.BiRNN(3, 4, 2, mode=case.mode, **case.options)
        self.out = nn.Linear(4 if case.options.get("merge_mode") in ("sum", "mean", "mul") else 8, 2)

    def forward(self, x, lengths, reset):
        given = {"reset": reset} if self.case.reset else {}
        output, _, *states = self.rnn(x, lengths=lengths, return_states=self.case.states, **given)
        scores = self.out(torch.cat(output, -1) if isinstance(output, tuple) else output)
        if not states:
            return scores
        states = states[0][1] if isinstance(states[0], tuple) else states[0]
        return scores + states.mean((2, 3)).unsqueeze(-1)


def problem(name):
    """(model, [(x, lengths, reset, target)]): the same in every process; each process has every second row.

    Masks that are drawn for every row would not be those of one process: such layers learn in evaluation mode.
    """
    torch.manual_seed(0)
    model = Tagger(CASES[name]).double()
    model.train(not {"recurrent_dropout", "zoneout"} & set(CASES[name].options))
    batches, rows = [], 2 * WORLD
    for _ in range(STEPS):
        x, target = (torch.randn(6, rows, n, dtype=torch.float64) for n in (3, 2))
        batches.append((x, torch.randint(0, 7, (rows,)), torch.rand(6, rows) < 0.3, target))
    return model, batches


def learn(model, batches, rank=0, world=1):
    """Gradients of the first step and the weights after the last."""
    optimiser, first = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None
    for i, (x, lengths, reset, target) in enumerate(batches):
        optimiser.zero_grad()
        torch.manual_seed(i)  # the same weights are dropped everywhere
        x, reset, target = (t[:, rank::world] for t in (x, reset, target))
        loss = (model(x, lengths[rank::world], reset) - target).square().mean()
        loss.backward()
        first = first or [whole(p.grad).clone() for p in model.parameters()]
        optimiser.step()
    return first, [whole(p).detach() for p in model.parameters()]


def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def one_process(rank, folder):
    """What each of the two processes does; its results go to a file."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        found = {}
        for name in CASES:
            model, batches = problem(name)
            parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
            found["ddp", name] = learn(parallel, batches, rank, WORLD)
            sharded = copy.deepcopy(model)
            mesh = distributed.device_mesh.init_device_mesh("cpu", (WORLD,))
            fully_shard(sharded.rnn, mesh=mesh), fully_shard(sharded, mesh=mesh)
            assert isinstance(sharded.rnn.weight_hh_l0, DTensor), "sharded between calls"
            found["fsdp", name] = learn(sharded, batches, rank, WORLD)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.start_processes(one_process, (str(tmp_path),), nprocs=WORLD, start_method="spawn")
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    assert results[0].keys() == {(kind, name) for kind in ("ddp", "fsdp") for name in CASES}
    for (_, name), found in results[0].items():
        expected = learn(*problem(name))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.slow
def test_the_example_by_torchrun(tmp_path):
    """Two processes print the numbers that one computes."""
    pytest.importorskip("tqdm", reason="examples need the packages of the extra `bench`")
    options = ["--epochs", "1", "--hidden", "8", "--lr", "1e-2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    # The address, since looking up the name of a machine takes minutes where there is no name server.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", str(ROOT / "examples/train_ddp.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "processes 2, batches 9"
    found = [float(word.strip(",")) for word in second.split() if word[0].isdigit()]
    sys.path.append(str(ROOT))
    from examples import train_ddp

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        losses, accuracy = train_ddp.train(train_ddp.arguments(options))
    finally:
        distributed.destroy_process_group()
    assert losses[-1] < 0.98 * losses[0]
    torch.testing.assert_close(found, [losses[0], losses[-1], accuracy], rtol=0, atol=3e-3)
