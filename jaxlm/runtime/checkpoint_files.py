"""Writing and reading one step of a checkpoint directory with Orbax, and the record that makes a step verifiable.

A step is a directory with the arrays of each part of the state ("params", "opt_state") and a JSON record: the metadata
of the run, the score, and shape, dtype and checksum of each array. Orbax by itself accepts an empty directory as a
checkpoint and loads flipped bits; here both are detected. This is the only file that imports Orbax, whose v1 API may
still change.
"""

import gc
import json
import logging
import os
import re
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxlm.errors import UserError
from jaxlm.runtime import tensorstore_patch
from jaxlm.runtime.checksums import checksums, named_leaves
from jaxlm.storage import parse_json

PyTree = Any
T = TypeVar("T")
RECORD_NAME = "_CHECKPOINT_METADATA"  # where Orbax stores custom_metadata
TEMPORARY_SUFFIX = ".orbax-checkpoint-tmp"  # of a directory that Orbax is still writing

# Orbax logs a traceback for each error that it also raises, and the raised one becomes one sentence here.
logging.getLogger("absl").addFilter(lambda record: not _is_from_orbax(record))
tensorstore_patch.apply()


def _is_from_orbax(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    # If the logger was first requested before absl was imported, as cli.py does, the record names absl's own file.
    files = [record.pathname, *(frame.filename for frame in traceback.extract_tb(trace))]
    return any("orbax" in Path(file).parts for file in files)


class OrbaxError(Exception):
    """The reason why Orbax failed, in one line."""


class BrokenStepError(Exception):
    """The reason why a step is not intact, worded to follow `checkpoint 30 `."""


class Write:
    """A step that is being written in the background."""

    def __init__(self, directory: Path, step: int, arrays: Mapping[str, Array], record: dict[str, Any]) -> None:
        """Starts to write the arrays and the record (JSON). Raises OrbaxError."""
        self.step = step
        path, content = directory / str(step), record | {"crc32": _crc32(record)}
        self._response: Any = _call(
            lambda: ocp.save_checkpointables_async(path, _nested(arrays), custom_metadata=content)
        )

    def wait(self) -> None:
        """Waits until the step is on disk under its name. Raises OrbaxError."""
        _call(self._response.result)


def array_records(arrays: Mapping[str, Array], sums: Mapping[str, tuple[int, bool]]) -> dict[str, list]:
    """Returns [shape, dtype, checksum] of each array, given the result of `checksums`."""
    return {name: [list(array.shape), str(array.dtype), sums[name][0]] for name, array in arrays.items()}


def read_record(directory: Path, step: int) -> dict[str, Any]:
    """Returns the record of a step. Raises BrokenStepError if the step is visibly damaged; arrays are not read."""
    # Orbax's own reader opens every array, which takes longer than writing a small step and leaks memory.
    path = directory / str(step)
    try:
        if not any(path.iterdir()):
            raise BrokenStepError("is empty")
        if odd := [entry.name for entry in path.rglob("*") if not (entry.is_file() or entry.is_dir())]:
            raise BrokenStepError(f"holds {odd[0]}, which is neither a file nor a directory")  # reading it could hang
        content = parse_json((path / RECORD_NAME).read_bytes())
    except OSError as error:
        raise BrokenStepError(f"cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise BrokenStepError("has a damaged record") from error
    record = content.get("custom_metadata") if isinstance(content, dict) else None
    if not isinstance(record, dict) or "crc32" not in record:
        raise BrokenStepError("was not written by jaxlm, or its record is missing")
    record = dict(record)
    if record.pop("crc32") != _crc32(record):
        raise BrokenStepError("has a damaged record")
    if record["step"] != step:
        raise BrokenStepError(f"is a copy of checkpoint {record['step']} under another name")
    parts = {name.split("/")[0] for name in record["arrays"]}
    if missing := [part for part in sorted(parts) if not (path / part).is_dir()]:
        raise BrokenStepError(f"has no {listed(missing)}")
    return record


def read_step(
    directory: Path, step: int, abstract: PyTree, parts: set[str] | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Returns (state, record) of a step, on every process of the run.

    abstract is a tree of jax.ShapeDtypeStruct; arrays are loaded onto its shardings, or onto one device where it has
    none. parts selects the top-level entries to compare with the record, by default all. Raises BrokenStepError on
    every process if the step is damaged, and UserError if names, shapes or dtypes of the arrays differ.
    """
    record = _on_all_or_none(lambda: read_record(directory, step))
    targets = {name: _with_sharding(leaf) for name, leaf in named_leaves(abstract).items()}
    stored = {name: about for name, about in record["arrays"].items() if not parts or name.split("/")[0] in parts}
    _check_arrays(f"checkpoint {step} in {directory}", stored, targets)
    arrays = _on_all_or_none(lambda: _read_arrays(directory / str(step), targets))
    sums = checksums(arrays)
    if wrong := [name for name, (value, _) in sums.items() if value != stored[name][2]]:
        others = f"; {len(wrong) - 1} more do not either" if wrong[1:] else ""
        raise BrokenStepError(f"is damaged (array {wrong[0]} does not match its checksum{others})")
    if wrong := [name for name, (_, finite) in sums.items() if not finite]:
        raise BrokenStepError(f"contains NaN or infinity in {listed(wrong)}")
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(abstract), arrays.values()), record


def _read_arrays(path: Path, targets: Mapping[str, Any]) -> dict[str, Array]:
    try:
        loaded = _call(lambda: ocp.load_checkpointables(path, _nested(targets))) if targets else {}
    except OrbaxError as error:
        raise BrokenStepError(f"cannot be read ({error})") from error
    arrays = named_leaves(loaded)
    return {name: arrays[name] for name in targets}


def _check_arrays(what: str, stored: Mapping[str, list], targets: Mapping[str, Any]) -> None:
    """Raises UserError with the first arrays that are missing, unexpected, or differ in shape or dtype."""
    expected = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in targets.items()}
    text = lambda about: f"{about[1]}{about[0]}"  # noqa: E731
    differences = {
        "missing from the checkpoint:": [name for name in expected if name not in stored],
        "unknown to the model:": [name for name in stored if name not in expected],
        "different:": [
            f"{name} ({text(stored[name])} in the checkpoint, {text(about)} in the model)"
            for name, about in expected.items()
            if name in stored and stored[name][:2] != about
        ],
    }
    if found := [f"{kind} {listed(names)}" for kind, names in differences.items() if names]:
        raise UserError(f"{what} does not fit this model; {'; '.join(found)}")


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested plain dicts, so that a checkpoint does not depend on the classes of an optimizer's state."""
    tree: dict[str, Any] = {}
    for name, leaf in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _on_all_or_none(read: Callable[[], T]) -> T:
    """Returns read(); a BrokenStepError of one process is raised on every process."""
    result, broken = None, ""
    try:
        result = read()
    except BrokenStepError as error:
        broken = str(error)
    intact = not broken
    if jax.process_count() > 1:
        intact = bool(np.all(multihost_utils.process_allgather(np.array(intact))))
    if not intact:
        raise BrokenStepError(broken or "cannot be read by another process")
    return cast(T, result)


def _call(function: Callable[[], T]) -> T:
    """Returns function(), a call of Orbax. Raises OrbaxError with the reason in one line."""
    context = ocp.Context()
    # When a directory cannot be created in the background, Orbax leaves threads behind that wait for five minutes.
    context.asynchronous.create_directories_asynchronously = False
    hook, quiet = sys.unraisablehook, lambda record: "never retrieved" not in record.getMessage()
    # A failed call leaves unfinished tasks behind, and Python reports each one when it is garbage-collected.
    sys.unraisablehook = lambda _: None
    logging.getLogger("asyncio").addFilter(quiet)
    try:
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return function()
            except Exception as error:
                if isinstance(_root_cause(error), MemoryError | jax.errors.JaxRuntimeError):
                    raise  # a failure of this machine, not of the checkpoint
                text = reason(error)
            gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.getLogger("asyncio").removeFilter(quiet)
    # Reads that are still in progress end later, in a TensorStore thread that finds the event loop closed.
    sys.unraisablehook = lambda late: None if "loop is closed" in str(late.exc_value) else hook(late)
    raise OrbaxError(text)


def _root_cause(error: BaseException) -> BaseException:
    """Returns the innermost cause of an error, which is where Orbax keeps the reason."""
    return error if error.__cause__ is None else _root_cause(error.__cause__)


def reason(error: BaseException) -> str:
    """Returns why reading or writing failed, in one line: the system's message, or the last part of TensorStore's."""
    error = _root_cause(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OrbaxError):
        return str(error)
    text = str(error)
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    # TensorStore's messages have the form `CODE: where: where: what: details [spec]`.
    text = re.sub(r" \[(tensorstore_spec|source locations)=.*", "", text, flags=re.DOTALL).partition("\n")[0]
    if re.match(r"[A-Z_]+: ", text):
        return ": ".join(text.split(": ")[-2:])[-200:]
    return f"{type(error).__name__}: {text[:200]}"


def listed(names: list[str]) -> str:
    """Returns the first three names and the number of the others."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
