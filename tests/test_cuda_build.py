"""The CUDA half of the library under nvcc, on a machine that need not have a GPU: it compiles for every architecture without
spills and within its registers, links with nothing left open, and loads beside whatever torch is installed.

Not here: whether it computes what it should (tests/shim without a GPU, tests/gpu with one).
"""

import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from shim import build
from torch.utils import cpp_extension

pytestmark = pytest.mark.slow
OUT = build.ROOT / "build/cuda_gate"
# Registers of a thread. Blocks of 512 threads may have 128 each on every architecture; the stepwise kernels shall not
# keep their neighbours off a multiprocessor.
BUDGET = {"block_kernel": 128, "spread_kernel": 128, "cluster_kernel": 128, "step_kernel": 64, "": 48}


def facts(expression):
    """What setup.py knows, without running it."""
    namespace = {"__name__": "facts", "__file__": str(build.ROOT / "setup.py")}
    text = (build.ROOT / "setup.py").read_text().partition("class Build(")[0]
    exec(compile(text, "setup.py", "exec"), namespace)
    return eval(expression, namespace)


@pytest.fixture(scope="module")
def home():
    found = facts("cuda_home()")
    if not found:
        pytest.skip("no folder with bin/nvcc and include/cuda_runtime.h")
    return found


def test_architectures_can_be_chosen(home, monkeypatch):
    known = facts(f"cuda_archs(Path({str(home)!r}))")
    assert "9.0a" in known and known[-1].endswith("+PTX")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a+PTX")
    assert facts(f"cuda_archs(Path({str(home)!r}))") == ["8.0", "9.0a+PTX"]
    monkeypatch.setenv("BIRNN_CUDA_ARCHS", "12.0")
    assert facts(f"cuda_archs(Path({str(home)!r}))") == ["12.0"]
    monkeypatch.setenv("BIRNN_CUDA_ARCHS", "sm_90")
    with pytest.raises(SystemExit, match="BIRNN_CUDA_ARCHS: expected numbers like 9.0, 9.0a or 9.0.PTX, got 'sm_90'"):
        facts(f"cuda_archs(Path({str(home)!r}))")


@pytest.fixture(scope="module")
def kernels(home):
    """The kernels' objects for all architectures, and what ptxas says of each: {(kernel, architecture): (registers, spills)}"""
    OUT.mkdir(parents=True, exist_ok=True)
    headers = [*build.CSRC.rglob("*.h"), build.ROOT / "setup.py"]
    archs = facts(f"sum(map(gencode, cuda_archs(Path({str(home)!r}))), [])")
    objects, reports = [], []
    for source in build.KERNELS:
        made, said = OUT / f"{source.stem}.o", OUT / f"{source.stem}.txt"
        objects.append(made), reports.append(said)
        if said.exists() and said.stat().st_mtime > max(path.stat().st_mtime for path in (source, *headers)):
            continue
        command = [home / "bin/nvcc", "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "--threads=2"]
        done = subprocess.run(
            [*command, *archs, f"-I{build.CSRC}", "-c", source, "-o", made], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        said.write_text(done.stderr)
    found = {}
    for said in reports:
        pieces = said.read_text().split("Compiling entry function '")[1:]
        for piece in pieces:
            name, arch = re.match(r"(\w+)' for '(\w+)'", piece).groups()
            spills = sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill)", piece)))
            found[name, arch] = int(re.search(r"Used (\d+) registers", piece)[1]), spills
    return objects, found


def test_every_architecture_has_every_kernel(kernels):
    by_arch = defaultdict(set)
    for name, arch in kernels[1]:
        by_arch[arch].add(name)
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"} <= set(by_arch)
    names = by_arch["sm_90a"]
    assert all(found == names for found in by_arch.values())
    # Four cells, three or four dtypes, two passes.
    assert sum("block_kernel" in name for name in names) == 4 * 3 * 2
    assert sum("spread_kernel" in name for name in names) == sum("cluster_kernel" in name for name in names) == 4 * 3 * 2
    assert sum("step_kernel" in name for name in names) == 4 * 4 * 2


def test_registers_and_spills(kernels):
    over = []
    for (name, arch), (registers, spills) in kernels[1].items():
        budget = next(most for word, most in BUDGET.items() if word in name)
        if registers > budget or spills:
            over.append(f"{name} for {arch}: {registers} registers of {budget}, {spills} bytes spilled")
    assert not over, "\n".join(over)


def test_the_documented_registers(kernels):
    """docs/how/gpu.md says how many registers a kernel of each kind uses at most."""
    text = (build.ROOT / "docs/how/gpu.md").read_text()
    header, _, *rows = re.search(r"\| registers \|.*?\n\n", text, re.DOTALL)[0].strip().splitlines()
    archs = [cell.strip() for cell in header.strip("|").split("|")[1:]]
    assert set(archs) == {arch for _, arch in kernels[1]}
    most = defaultdict(int)
    for (name, arch), (registers, _) in kernels[1].items():
        kind = re.search(r"(forward|backward)_(step|block|spread|cluster)_kernel", name)
        if kind:
            most[f"{kind[2]}, {kind[1]}", arch] = max(most[f"{kind[2]}, {kind[1]}", arch], registers)
    documented = {}
    for row in rows:
        kind, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
        documented |= {(kind, arch): int(number) for arch, number in zip(archs, numbers, strict=True)}
    assert documented.keys() == most.keys()
    assert not {key: registers for key, registers in most.items() if registers > documented[key]}


@pytest.fixture(scope="module")
def library(home, kernels):
    """Kernels and host side as one library, with nothing left open."""
    sources = [*sorted((build.CSRC / "cuda").glob("*.cpp")), build.CSRC / "ops.cpp", build.CSRC / "library.cpp"]
    flags = [f"-isystem{path}" for path in cpp_extension.include_paths()] + ["-fvisibility=hidden"]
    objects = build.compile_all([*sources, build.SHIM / "probe.cpp"], OUT / "host", flags)
    folders = [f"-L{folder}" for folder in (home / "lib64", home / "lib") if folder.is_dir()]
    folders += [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries = ["-lc10", "-ltorch_cpu", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return build.link([*objects, *kernels[0]], OUT / "birnn_cuda.so", ["-shared", "-Wl,--no-undefined", *folders, *libraries])


LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
probe = torch.ops.birnn_probe
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert all(has(f"birnn_ext::{op}", "CUDA") for op in ("layer", "layer_backward"))
assert torch.ops.birnn_ext.cuda_tier
rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul

# TF32 where the setting of products and that of cuDNN's layers allow it; neither is changed.
for above in ("none", "ieee", "tf32"):
    torch.backends.fp32_precision = above
    for of_products in ("none", "ieee", "tf32"):
        for of_rnn in ("ieee", "tf32"):
            matmul.fp32_precision, rnn.fp32_precision = of_products, of_rnn
            before = matmul.fp32_precision
            expected = before == "tf32" and of_rnn == "tf32"
            assert probe.in_tf32(torch.float32) == expected, (above, of_products, of_rnn)
            assert (matmul.fp32_precision, rnn.fp32_precision) == (before, of_rnn), (above, of_products, of_rnn)

a, b = torch.randn(5, 3), torch.randn(3, 4)
product, columns = probe.sums(a, b)
torch.testing.assert_close(product, 2 * a @ b)
torch.testing.assert_close(columns, 2 * a.sum(0))
print(probe.device())
"""


def test_it_loads_beside_this_torch_and_says_what_is_missing(library):
    """In a fresh process: two libraries cannot define the same ops."""
    command = [sys.executable, "-c", LOAD, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said == "device" or re.match(r"birnn_ext: device: CUDA error \d+, .*(driver|no CUDA-capable device)", said), said


def test_kernels_include_no_torch(home):
    for source in build.KERNELS:
        command = [home / "bin/nvcc", "-std=c++17", "-M", f"-I{build.CSRC}", source]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        assert not re.findall(r"\S*/(?:torch|ATen|c10)/\S*", listed)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_layer_for_cuda_is_refused_where_torch_has_none():
    import birnn_ext

    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        birnn_ext.GRU(3, 4, device="cuda")
