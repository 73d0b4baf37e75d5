"""The commands of `python -m birnn_ext`: what they print, and the exit codes; never a traceback."""

import subprocess
import sys

import pytest
import torch

import birnn_ext
from birnn_ext import bench, report
from birnn_ext.__main__ import main
from birnn_ext.explain import describe

BENCH = ["bench", "--budget", "0.01", "--hidden", "4", "--input", "3", "--steps", "5", "--batch", "2", "--threads", "1"]


def test_in_a_shell():
    ran = subprocess.run([sys.executable, "-m", "birnn_ext"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and ran.stdout.startswith("birnn_ext ") and not ran.stderr, ran.stderr
    ran = subprocess.run([sys.executable, "-m", "birnn_ext", "explode"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and "invalid choice: 'explode'" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("argv", [[], ["info"]], ids=str)
@pytest.mark.parametrize("ok", [True, False])
def test_info_is_the_default_and_its_check_decides(monkeypatch, capsys, argv, ok):
    found = [report.Checked("GRU float32 cpu", 0.1, 0.1, ok)]
    monkeypatch.setattr(report, "self_check", lambda device: found)
    assert main(argv) == (0 if ok else 1)
    assert ("FAILED" in capsys.readouterr().out) is not ok


def test_explain(capsys):
    assert main(["explain", "--mode", "lstm", "--layers", "2", "--steps", "6", "--batch-first"]) == 0
    layer = birnn_ext.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
    assert capsys.readouterr().out == describe(layer, steps=6) + "\n"
    assert main(["explain", "--mode", "RNN", "--one-direction", "--hidden", "2"]) == 0
    assert capsys.readouterr().out == describe(birnn_ext.RNN(3, 2)) + "\n"


@pytest.mark.parametrize("mode", ["GRU", "LSTM", "RNN", "RNN_RELU"])
def test_bench(capsys, mode):
    assert main([*BENCH, "--mode", mode, "--layers", "2"]) == 0
    text = capsys.readouterr().out
    assert "bidirectional=True" in text and "training" in text and "times as fast" in text


def test_bench_of_one_pass(capsys):
    assert main([*BENCH, "--passes", "inference", "--dtype", "float64", "--one-direction"]) == 0
    assert "training" not in (text := capsys.readouterr().out) and "float64" in text and "bidirectional" not in text


def code(argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return caught.value.code


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["bench", "--mode", "CNN"], "'CNN' is none of RNN"),
        (["bench", "--hidden", "0"], "'0' is no positive whole number"),
        (["explain", "--layers", "two"], "'two' is no positive whole number"),
        (["explain", "--proj", "2"], "proj_size argument is only supported for LSTM"),
        (["explain", "--mode", "LSTM", "--proj", "9"], "proj_size has to be smaller than hidden_size"),
        (["bench", "--device", "nonsense"], "device type"),
        (["bench", "--dtype", "int8"], "invalid choice"),
        (["info", "--verbose"], "unrecognized arguments"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_with_exit_code_2(capsys, argv, text):
    assert code(argv) == 2
    printed = capsys.readouterr().err
    assert text in printed and "Traceback" not in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(capsys):
    assert code(["bench", "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_a_wrong_result_is_exit_code_1(monkeypatch, capsys):
    def wrong(*_, **__):
        raise bench.Disagreement("result 0 differs by 1.0e+00")

    monkeypatch.setattr(bench, "benchmark", wrong)
    assert code(BENCH) == 1
    assert "result 0 differs" in capsys.readouterr().err
