"""Loads the compiled library birnn_ext._C, or says in one sentence why it cannot be used.

A library fits the torch minor version that it was compiled against, and no other: the C++ interface that it calls is not
kept between them. setup.py writes that version beside the library (`birnn_ext/_built.py`), so that the wrong one is not
loaded at all, where the dynamic linker would complain of an undefined symbol, or, worse, not complain.
Not here: what the library holds (csrc/module.cpp), what happens without it (`birnn_ext.ops`).
"""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path
from types import ModuleType

import torch

SLOW = "Until then every layer runs on the slow reference path."


def built_for() -> str | None:
    """The torch version that the library was compiled against; None if nothing was compiled."""
    try:
        return importlib.import_module("birnn_ext._built").TORCH
    except ImportError:
        return None


def misfit(built: str | None, installed: str) -> str | None:
    """Why a library compiled against torch `built` cannot be used with torch `installed`: a sentence, or None.

    >>> from birnn_ext.library import misfit
    >>> misfit("2.13.0+cpu", "2.13.1+cu130")
    >>> print(misfit("2.13.0+cpu", "2.14.1"))
    this build of birnn_ext is for torch 2.13, and torch 2.14.1 is installed: install the wheel for torch 2.14, or \
rebuild with `pip install --no-build-isolation --no-deps --force-reinstall .`.
    """
    if built is None or minor(built) == minor(installed):
        return None
    return (
        f"this build of birnn_ext is for torch {minor(built)}, and torch {installed} is installed: install the wheel for "
        f"torch {minor(installed)}, or rebuild with `pip install --no-build-isolation --no-deps --force-reinstall .`."
    )


def minor(version: str) -> str:
    """ "2.13.0+cpu" -> "2.13"."""
    return ".".join(re.findall(r"\d+", version)[:2])


def load() -> ModuleType | None:
    """birnn_ext._C, or None after a warning that says what is wrong and what to do."""
    if sentence := misfit(built_for(), torch.__version__):
        warnings.warn(f"birnn_ext: {sentence} {SLOW}", stacklevel=3)
        return None
    try:
        return importlib.import_module("birnn_ext._C")
    except ImportError as error:
        warnings.warn(
            f"birnn_ext: its compiled library could not be loaded ({error}), so every layer runs on the slow reference "
            f"path. {remedy(Path(__file__).parents[1])}",
            stacklevel=3,
        )
        return None


def remedy(folder: Path) -> str:
    """What to do about a library that is not beside the package in `folder`."""
    # Python looks into the folder that it is started in first: a copy of the sources hides what pip has installed.
    if (folder / "setup.py").exists():
        return (
            f"This is the copy of the sources in {folder}: if birnn_ext is installed, start Python in another folder; to "
            "compile it here, `python setup.py build_ext --inplace`."
        )
    return "Install with `pip install --no-build-isolation .` against the torch that is in use."
