"""The fixture that forces instruction sets."""

import pytest

try:
    from birnn_ext import _C
except ImportError:  # each file of this folder is then skipped
    _C = None


@pytest.fixture(params=_C.isa_list() if _C else [])
def isa(request):
    """Each instruction set of this machine in turn, in use for the test; the one from before is put back."""
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)
