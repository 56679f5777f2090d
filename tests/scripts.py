"""For tests of scripts/: loads its programs, whose names have no suffix, as modules, and writes data that they read."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
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


def write_sick(folder: Path) -> Path:
    """Writes the three files of SICK, of eight rows each, into a new folder and returns it."""
    folder.mkdir()
    for name in ("train", "trial", "test"):
        lines = [f"{n}\ta {name}  {n}\tb {n}\t{1 + n % 5}\tNEUTRAL\n" for n in range(8)]
        header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        (folder / f"{name}.tsv").write_text(header + "".join(lines))
    return folder
