"""Every public name has a docstring with an example, and every example in the package does what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import birnn_ext
from birnn_ext import layout

MODULES = [name for _, name, _ in pkgutil.iter_modules(birnn_ext.__path__) if not name.startswith("_")]
PUBLIC = {name: getattr(birnn_ext, name) for name in birnn_ext.__all__ if name not in ("__version__", "layout")}
PUBLIC |= {f"layout.{name}": getattr(layout, name) for name in layout.__all__}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"birnn_ext.{name}")
    found = doctest.testmod(module, raise_on_error=False)
    assert not found.failed


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_with_an_example(name):
    text = inspect.getdoc(PUBLIC[name])
    assert text and ">>> " in text, f"birnn_ext.{name} has no example"
    if not inspect.isclass(PUBLIC[name]) and inspect.signature(PUBLIC[name]).parameters:
        assert "Args:" in text and "Raises:" in text and ("Returns:" in text or name == "explain")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_signature_has_types(name):
    subject = PUBLIC[name].__init__ if inspect.isclass(PUBLIC[name]) else PUBLIC[name]
    signature = inspect.signature(subject)
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert not bare and signature.return_annotation is not signature.empty
