"""Skips this folder where the library is not compiled, and forces instruction sets."""

import pytest

_C = pytest.importorskip("birnn_ext._C", reason="birnn_ext._C is not built: python setup.py build_ext --inplace")


@pytest.fixture(params=_C.isa_list())
def isa(request):
    """Each instruction set of this machine in turn, in use for the test; the one from before is put back."""
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)
