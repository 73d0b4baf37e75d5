"""Who is speaking, on several processes or machines: the classifier of japanese_vowels.py under DistributedDataParallel.

    torchrun --standalone --nproc-per-node 2 examples/train_ddp.py --epochs 25
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint host:29500 examples/train_ddp.py

Every process takes its share of each batch, the gradients are averaged, and the weights stay equal: it learns what one
process learns from the joined batch, whatever the number of processes. The layer needs nothing for this. It is an
example: for 270 short utterances one process is faster.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parents[1]))  # for `examples`, when run as a file
import birnn_ext  # noqa: E402
from examples import japanese_vowels as example  # noqa: E402


def train(args):
    """Returns (losses of the batches, test accuracy), the same on every process."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if args.batch % world or example_count(args) % world:
        raise SystemExit(f"--batch: {args.batch} utterances cannot be shared equally by {world} processes")
    train_set, test_set = (part.to(args.device) for part in example.load())
    torch.manual_seed(args.seed)
    model = example.Classifier(birnn_ext, args.mode, args.hidden).to(args.device)
    model = DistributedDataParallel(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=args.lr)
    shuffle, losses = torch.Generator().manual_seed(args.seed), []
    for _ in range(args.epochs):
        for index in torch.randperm(len(train_set), generator=shuffle).split(args.batch):
            share = train_set.rows(index.chunk(world)[rank])
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(share.x, share.lengths), share.speaker)
            loss.backward()
            optimiser.step()
            mean = loss.detach().clone()
            distributed.all_reduce(mean)
            losses.append(mean.item() / world)
    with torch.no_grad():
        right = model.module(test_set.x, test_set.lengths).argmax(1) == test_set.speaker
    return losses, right.double().mean().item()


def example_count(args):
    """Utterances in the last, smallest batch."""
    return 270 % args.batch or args.batch


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mode", choices=example.MODES, default="GRU")
    parser.add_argument("--hidden", type=int, default=64, help="units per direction (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=25, help="default %(default)s")
    parser.add_argument("--batch", type=int, default=30, help="utterances per batch, of all processes (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    distributed.init_process_group("gloo" if args.device == "cpu" else "nccl")
    try:
        losses, accuracy = train(args)
        if distributed.get_rank() == 0:
            print(f"processes {distributed.get_world_size()}, batches {len(losses)}")
            print(f"loss {losses[0]:.5f} at the first batch, {losses[-1]:.5f} at the last, test accuracy {accuracy:.4f}")
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
