"""The fixtures that force instruction sets."""

import pytest

try:
    from birnn_ext import _C
except ImportError:  # each file of this folder is then skipped
    _C = None

ALL = _C.isa_list() if _C else []


def use(name):
    """`name` is in use for the test; the one from before is put back."""
    before = _C.isa()
    _C.set_isa(name)
    yield name
    _C.set_isa(before)


@pytest.fixture(params=[name for name in ALL if name != "avx512_bf16"])
def isa(request):
    """Each instruction set of this machine in turn, but for that which differs from another in bfloat16 alone."""
    yield from use(request.param)


@pytest.fixture(params=ALL)
def isa_of_halves(request):
    """Each instruction set of this machine in turn."""
    yield from use(request.param)
