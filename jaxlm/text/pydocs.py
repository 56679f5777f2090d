"""Reads the docstrings of the installed Python packages, a corpus that exists on every machine.

Modules are parsed, never imported.
"""

import ast
import hashlib
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.runtime.processes import map_in_processes, worker_count
from jaxlm.text.filters import Tally

FILES_PER_TASK = 64


def find_python_files() -> list[tuple[str, Path]]:
    """Returns (name, file) for each module of the standard library and of the installed packages, sorted by name.

    Names are relative to "stdlib" or "packages", so the order is the same on every machine with the same versions.
    jaxlm itself is excluded, and folders of tests, whose docstrings are often test data.
    """
    roots = [("stdlib", sysconfig.get_path("stdlib"))]
    roots += [("packages", root) for root in sys.path if Path(root).name in ("site-packages", "dist-packages")]
    skipped = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}
    files: dict[str, Path] = {}
    for kind, root in roots:
        for folder, folders, names in os.walk(root):
            top = folder == root
            folders[:] = [name for name in folders if name not in skipped and not (top and name == "jaxlm")]
            for name in names:
                file = Path(folder, name)
                if name.endswith(".py") and file.is_file():  # not a broken link
                    files.setdefault(f"{kind}/{file.relative_to(root).as_posix()}", file)
    return sorted(files.items())


def read_pydocs(settings: Any, tally: Tally) -> Iterator[str]:
    """Yields one document per module: its docstrings, each only where it occurs first, joined by blank lines.

    `settings` is the `data` section of a config. Repeated docstrings and unreadable files are counted in `tally`.
    """
    files = [str(file) for _, file in find_python_files()]
    batches = [files[i : i + FILES_PER_TASK] for i in range(0, len(files), FILES_PER_TASK)]
    seen: set[bytes] = set()
    for batch in map_in_processes(read_docstrings, batches, worker_count(settings)):
        for docstrings in batch:
            if docstrings is None:
                tally.drop("files that cannot be read as Python")
                continue
            new = []
            for docstring in docstrings:
                digest = hashlib.blake2b(docstring.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                if digest in seen:
                    tally.drop("docstrings seen before")
                else:
                    new.append(docstring)
                seen.add(digest)
            if new:
                yield "\n\n".join(new)


def read_docstrings(files: list[str]) -> list[list[str] | None]:
    """Returns the docstrings of each file, in order and without indentation; None for a file that is not Python."""
    return [_docstrings(Path(file)) for file in files]


def _docstrings(file: Path) -> list[str] | None:
    try:
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = (ast.get_docstring(node) or "").strip()
            if docstring:
                found.append((node.body[0].lineno, docstring))
    return [docstring for _, docstring in sorted(found)]
