"""benchmarks/peers: the other libraries compute the same, and say why they stay away. Nothing is timed here."""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tqdm", reason="benchmarks need the packages of the extra `bench`")
# At the end, so that an installed birnn_ext keeps the upper hand over the one in the tree.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.check import CheckFailed, Judge  # noqa: E402
from benchmarks.contenders import Ours  # noqa: E402
from benchmarks.peers import PEERS, JaxScan, OneDnn, OnnxRuntime, OpenVino, onednn_library  # noqa: E402
from benchmarks.problem import draw  # noqa: E402
from benchmarks.shapes import MODES, PASSES, Case, Shape  # noqa: E402

TINY = Shape("tiny", 3, 6, 5, 4)


def test_peers_say_why_they_stay_away(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "onnxruntime is not installed" in OnnxRuntime().why_not(Case(TINY, "GRU"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert OpenVino().why_not(Case(TINY, "GRU")) is None
    assert OpenVino().why_not(Case(TINY, "GRU", "training")) == "has no training"
    assert "one layer" in OpenVino().why_not(Case(TINY, "GRU", ragged=True))


def test_jax_says_why_it_stays_away(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "jax is not installed" in JaxScan().why_not(Case(TINY, "GRU"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(JaxScan, "started", None)
    assert JaxScan().why_not(Case(TINY, "GRU", "training", ragged=True)) is None
    assert "float32" in JaxScan().why_not(Case(TINY, "GRU", dtype="float64"))
    monkeypatch.setattr(JaxScan, "started", (2, {0, 1}))
    assert JaxScan().why_not(Case(TINY, "GRU", threads=2)) is None
    assert "has started with 2 threads" in JaxScan().why_not(Case(TINY, "GRU", threads=1))


def dnnl_tree(root, major, runtime):
    """A folder that looks like an installed oneDNN of this version."""
    headers = root / "include/oneapi/dnnl"
    headers.mkdir(parents=True)
    numbers = zip(("MAJOR", "MINOR", "PATCH"), (major, 2, 1), strict=True)
    (headers / "dnnl_version.h").write_text("".join(f"#define DNNL_VERSION_{name} {n}\n" for name, n in numbers))
    (headers / "dnnl_config.h").write_text(f"#define DNNL_CPU_RUNTIME DNNL_RUNTIME_{runtime}\n")
    (root / "lib").mkdir()
    (root / f"lib/libdnnl.so.{major}").touch()
    return root


@pytest.mark.parametrize(("major", "runtime"), [(2, "OMP"), (3, "SYCL")])
def test_onednn_says_why_it_stays_away(monkeypatch, tmp_path, major, runtime):
    onednn_library.load.cache_clear()
    assert "equal lengths" in OneDnn().why_not(Case(TINY, "GRU", ragged=True))
    monkeypatch.setenv("DNNL_ROOT", str(tmp_path / "nowhere"))
    assert "pip install onednn" in OneDnn().why_not(Case(TINY, "GRU"))
    monkeypatch.setenv("DNNL_ROOT", str(dnnl_tree(tmp_path / "root", major, runtime)))
    said = OneDnn().why_not(Case(TINY, "GRU"))
    assert "needs oneDNN 3 built with OpenMP" in said and f"oneDNN {major}.2.1" in said


def test_onednn_is_found_and_its_compiler_s_complaint_shown(monkeypatch, tmp_path):
    root = dnnl_tree(tmp_path, 3, "OMP")
    monkeypatch.setenv("DNNL_ROOT", str(root))
    assert onednn_library.find() == (root / "include", root / "lib") and OneDnn().version() == "3.2.1"
    monkeypatch.setattr(onednn_library, "BUILD", tmp_path / "build")
    onednn_library.load.cache_clear()
    assert "dnnl.hpp" in OneDnn().why_not(Case(TINY, "GRU"))  # which the folder lacks


@pytest.mark.parametrize("layers", [1, 2], ids=["one layer", "two layers"])
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_the_same(name, mode, pass_, ragged, layers):
    case, peer = Case(replace(TINY, L=layers), mode, pass_, ragged=ragged), PEERS[name]()
    reason = peer.why_not(replace(case, shape=TINY, pass_="inference", ragged=False))
    if reason:  # not installed
        pytest.skip(reason)
    if peer.why_not(case):
        assert (name, pass_, ragged, layers) not in TAKES_PART
        return
    assert (name, pass_, ragged, layers) in TAKES_PART
    problem = draw(case)
    peer.prepare(problem)
    assert Judge(problem).check(peer, peer=True) < 1e-5
    assert peer.version()


# (peer, pass, ragged, layers)
TAKES_PART = (
    {(name, "inference", False, 1) for name in PEERS}
    | {("onednn", pass_, False, layers) for pass_ in PASSES for layers in (1, 2)}
    | {("jax", pass_, ragged, layers) for pass_ in PASSES for ragged in (False, True) for layers in (1, 2)}
)


class NoGradient(Ours):
    name = "a peer"

    def results(self, i):
        return {name: tensor for name, tensor in super().results(i).items() if name != "gradient of bias_hh_l0"}


def test_a_peer_owes_gradients_in_training_and_the_output_alone_in_inference():
    for pass_ in PASSES:
        problem, peer = draw(Case(TINY, "GRU", pass_)), NoGradient()
        peer.prepare(problem)
        if pass_ == "inference":
            assert Judge(problem).check(peer, peer=True) < 1e-5
            continue
        with pytest.raises(CheckFailed, match="did not compute: gradient of bias_hh_l0"):
            Judge(problem).check(peer, peer=True)


def test_the_documented_table_of_onednn_is_that_of_the_results():
    root = Path(__file__).parents[1]
    text = (root / "docs/benchmarks.md").read_text()

    def row(name, least=0.0):
        """The cells of a file's cases in which ours takes at least so many ms."""
        cases = json.loads((root / f"benchmarks/results/peers/cpu_epyc_zen4_{name}.json").read_text())["cases"]
        cells = []
        for mode in ("GRU", "LSTM", "RNN_TANH"):
            for pass_ in PASSES:
                of_these = [c for c in cases if c["mode"] == mode and c["pass"] == pass_]
                found = [c["peer_ratio"]["onednn"]["median"] for c in of_these if c["times"]["birnn_ext"]["median_ms"] >= least]
                cells.append(f"{statistics.geometric_mean(found):.2f} ({min(found):.2f} - {max(found):.2f})" if found else "")
        return " | ".join(cells)

    for row_of in (
        row("2_threads"), row("1_thread"), row("2_threads_wide"), row("2_threads_wide", 0.5),
        row("2_threads_wide_prepacked"), row("2_threads_wide_prepacked", 0.5),
    ):  # fmt: skip
        assert " ".join(row_of.split()) in " ".join(text.split()), row_of
