"""Worker processes of a DataLoader, by fork and by spawn, after the layer has run in the parent: nobody waits for ever."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import birnn_ext


class Features(Dataset):
    """Each item is computed by the layer, in the worker: result and gradient."""

    def __init__(self):
        torch.manual_seed(0)
        self.rnn = birnn_ext.GRU(16, 32, 2, bidirectional=True)
        self.x = torch.randn(4, 30, 8, 16)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i].clone().requires_grad_()
        output = self.rnn(x)[0]
        output.sum().backward()
        return torch.cat([output.detach().flatten(), x.grad.flatten()])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_the_layer_in_workers(how, threads):
    """Torch gives a worker one thread; what it computes agrees with what the parent did."""
    if how == "spawn" and threads != 2:
        return  # a fresh process knows nothing of the parent's threads: once is enough
    data = Features()
    expected = torch.stack([data[i] for i in range(len(data))])  # starts the parent's threads
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=how, timeout=120)
    found = torch.cat(list(loader))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(data[0], expected[0])  # and the parent goes on
