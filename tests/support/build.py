"""setup.py as a module, for its flags and for where it looks for compilers."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from .paths import ROOT


def load_build() -> ModuleType:
    """Import it, which builds nothing."""
    spec = importlib.util.spec_from_file_location("pad_fast_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
