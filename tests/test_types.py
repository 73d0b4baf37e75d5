"""What a type checker tells somebody who builds a layer."""

import subprocess
import sys

import pytest

pytest.importorskip("mypy", reason="the extra `types` has it")

SNIPPET = """
import torch
import birnn_ext

layer = birnn_ext.GRU(3, 4, 2, batch_first=True, bidirectional=True, zoneout=0.1, recompute=True)
lstm = birnn_ext.LSTM(3, 4, proj_size=2, dtype=torch.float64, zoneout=(0.1, 0.2))
rnn = birnn_ext.RNN(3, 4, 1, "relu", merge_mode=None)
both = birnn_ext.BiRNN(3, 4, mode="LSTM")
birnn_ext.GRU("3", 4)
birnn_ext.GRU(3, 4, proj_size=2)
birnn_ext.LSTM(3, 4, zone_out=0.1)
reveal_type(birnn_ext.convert(layer))
"""


@pytest.mark.slow
def test_signatures_are_seen(tmp_path):
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", str(tmp_path / "cache"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if "snippet.py" in line and "defined in" not in line]
    assert [line.split(":")[1] for line in lines] == ["9", "10", "11", "12"], done.stdout
    assert '"str"' in lines[0] and "proj_size" in lines[1] and "zone_out" in lines[2] and '"birnn_ext.module.GRU"' in lines[3]
