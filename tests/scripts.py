"""Loading the programs of scripts/, whose names have no suffix, as modules."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

from tests.conftest import ROOT


def load_script(name: str) -> ModuleType:
    """Returns a program of scripts/ as a module."""
    loader = SourceFileLoader(name, str(ROOT / "scripts" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module
