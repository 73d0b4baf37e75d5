"""What `make demo` runs: a short benchmark and the Japanese Vowels example, a table, two pictures. About two
minutes.

Usage:  python -m benchmarks.demo
"""

import argparse
from pathlib import Path

from examples import japanese_vowels

from . import run

# From one row to a batch that fills the caches.
SHAPES = ("one_small", "one_medium", "few_medium", "many_small")
MODES = "GRU,LSTM,RNN_TANH"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the pictures (default %(default)s)")
    parser.add_argument("--mode", choices=japanese_vowels.MODES, default="GRU", help="mode of the example")
    parser.add_argument("--budget", type=float, default=1.2, help="seconds of timing per case (default %(default)s)")
    args = parser.parse_args(argv)

    print("1. One bidirectional layer against torch.nn: checked against float64, then timed in turns\n")
    settings = run.arguments(["--shapes", *SHAPES, "--modes", MODES, "--budget", str(args.budget)])
    result = run.measure_or_exit(settings)
    speed = run.save(result, args.out / "speed.json")

    print("\n2. Learning to tell nine speakers apart, with torch.nn and with birnn_ext\n")
    facts, vowels = japanese_vowels.main(["--mode", args.mode, "--out", str(args.out)])

    print(f"\n{run.closing(result)}\n")
    accuracy = " / ".join(f"{value:.1%}" for value in facts["accuracy"].values())
    print(f"Japanese Vowels ({args.mode}): test accuracy {accuracy} (torch.nn / birnn_ext), ", end="")
    print(f"{facts['ratio']:.1f} times as fast, losses within {facts['largest_loss_difference']:.0e}")
    print(f"\npictures: {speed}\n          {vowels}")


if __name__ == "__main__":
    main()
