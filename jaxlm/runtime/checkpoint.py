"""Checkpoints: written in the background, whole or not at all, and checked array by array when they are read back.

The only file that knows Orbax, which writes and reads single directories here. Which of them are steps, which steps are
whole and which may go is decided below: Orbax takes an empty directory for a checkpoint, and a flipped bit for data.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax import Array, lax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxlm.errors import UserError
from jaxlm.version import __version__

PyTree = Any
T = TypeVar("T")
STEP_NAME = re.compile(r"0|[1-9]\d{0,8}")
RECORD_NAME = "_CHECKPOINT_METADATA"  # where Orbax keeps what is saved beside the arrays
LEFTOVER_NAME = re.compile(rf"({STEP_NAME.pattern})\.(orbax-checkpoint-tmp.*|deleting)")

log = logging.getLogger("jaxlm")
# Orbax prints a traceback for each error that it also raises; the raised one becomes one sentence of ours.
logging.getLogger("absl").addFilter(lambda record: not _is_of_orbax(record))


def _spare_tensorstore_its_json() -> None:
    """Gives Orbax by other ways what it asks TensorStore for as JSON at each save, for each array and for its counters.

    TensorStore 0.1.86 never frees what it turns from JSON into Python.
    """
    spec: Any = tensorstore.KvStore.Spec
    to_json = spec.to_json

    def describe(self: Any, *args: Any, **kwargs: Any) -> Any:
        of_file = not args and not kwargs and self.url.startswith("file:")
        return {"driver": "file", "path": self.path} if of_file else to_json(self, *args, **kwargs)

    spec.to_json = describe
    tensorstore.experimental_collect_matching_metrics = lambda *_args, **_kwargs: []  # Orbax only logs them


_spare_tensorstore_its_json()


def _is_of_orbax(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    # The record names absl's own file where somebody asked for this logger before absl was imported, as cli.py does.
    files = [record.pathname, *(frame.filename for frame in traceback.extract_tb(trace))]
    return any("orbax" in Path(file).parts for file in files)


class NonFinite(UserError):
    """A state that must not be saved: `names` are its arrays that hold NaN or infinity, at update `step`."""

    def __init__(self, step: int, names: list[str]) -> None:
        self.step, self.names = step, names
        super().__init__(f"NaN or infinity stands in {_listed(names)}")


class Saved(NamedTuple):
    """A checkpoint that was read: the updates done, the arrays, and the metadata that were given to `save`."""

    step: int
    state: PyTree
    metadata: dict[str, Any]


class _OrbaxError(Exception):
    """Why Orbax failed, in one line."""


class _BrokenError(Exception):
    """Why a step is not whole, as it follows the words `checkpoint 30 `."""


class Checkpoints:
    """The checkpoints of one run, one folder a step in `directory`: the newest `keep`, and the one with the best score.

    All processes of a run call its methods together; only the first one renames and deletes. The methods that save are
    for the one run that owns the directory, the others change nothing in it.
    """

    def __init__(self, directory: Path, keep: int = 2, keep_best: bool = True, higher_is_better: bool = False) -> None:
        self.directory, self.keep, self.keep_best = Path(directory).resolve(), keep, keep_best
        self._writing: tuple[int, Any] | None = None
        self._broken: dict[int, str] = {}
        self._scores: dict[int, float | None] = {}  # of the steps that were whole when they were last looked at
        self._tidy = False

    def save(
        self, step: int, state: PyTree, metadata: dict[str, Any], score: float | None = None, wait: bool = False
    ) -> None:
        """Saves a dict of trees of arrays in the background, with metadata (JSON); a step that is there stays as it is.

        score is the held-out loss, lower is better. Raises NonFinite before anything is touched, and UserError where
        this save, or the one before it, could not be written.
        """
        arrays = _flatten(state)
        checksums = _examine(step, arrays)
        self.wait()
        if _from_first_process(lambda: self._prepare(step)):
            return
        record = {
            "step": step,
            "metadata": json.loads(json.dumps(metadata)),
            "score": score if score is not None and math.isfinite(score) else None,
            "versions": {"jaxlm": __version__, "jax": jax.__version__},
            "arrays": {
                "/".join(keys): [list(leaf.shape), str(leaf.dtype), checksum]
                for (keys, leaf), checksum in zip(arrays, checksums, strict=True)
            },
        }
        path, about = self.directory / str(step), record | {"crc32": _crc32(record)}
        try:
            response = _orbax(lambda: ocp.save_checkpointables_async(path, _nest(arrays), custom_metadata=about))
        except _OrbaxError as error:
            raise self._not_written(step, str(error)) from error
        self._writing = (step, response)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way is on disk, then deletes what is no longer kept. Raises UserError."""
        if self._writing is None:
            return
        step, response = self._writing
        try:
            _orbax(response.result)
        except _OrbaxError as error:
            self._writing = None
            raise self._not_written(step, str(error)) from error
        self._writing = None
        if jax.process_index() == 0:
            self._prune(step)

    def close(self) -> None:
        """Waits for the save under way. Raises UserError."""
        self.wait()

    def restore(self, abstract_state: PyTree, step: int | None = None) -> Saved | None:
        """Returns the newest whole step, or the one asked for; None where nothing was ever saved.

        abstract_state is the tree of jax.ShapeDtypeStruct with the shardings to load onto, whatever mesh wrote it. A
        step that is cut short or fails its checksums is skipped with a warning. Raises UserError if steps are there but
        none is whole, and if the arrays do not fit.
        """
        self.wait()
        saved, self._broken = _load_newest(self.directory, abstract_state, step)
        self._tidy = False
        return saved

    def newest(self) -> int | None:
        """Returns the newest step that looks whole by its files; arrays are not read."""
        for step in sorted(_steps(self.directory), reverse=True):
            if step not in self._broken:
                with contextlib.suppress(_BrokenError):
                    _read_record(self.directory, step)
                    return step
        return None

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata that were saved with a step. Raises UserError."""
        try:
            return _read_record(self.directory, step)["metadata"]
        except _BrokenError as reason:
            raise UserError(f"checkpoint {step} in {self.directory} {reason}") from reason

    def _prepare(self, step: int) -> bool:
        """Returns whether the step is there; the first save of a run clears what an earlier one left behind."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self._tidy:
                for entry in self.directory.iterdir():
                    if LEFTOVER_NAME.fullmatch(entry.name):
                        shutil.rmtree(entry)
                for old in _steps(self.directory):
                    self._set_aside_if_broken(old)
                self._tidy = True
        except OSError as error:
            raise self._not_written(step, _reason(error)) from error
        return step in _steps(self.directory)

    def _set_aside_if_broken(self, step: int) -> None:
        # A broken step must neither be taken for the newest nor stand where a step is to be saved, but it may still be
        # worth something to its owner: it is renamed, never deleted.
        reason = self._broken.pop(step, None)
        try:
            _read_record(self.directory, step)
        except _BrokenError as broken:
            reason = reason or str(broken)
        if reason:
            name = f"broken-{step}"
            while (self.directory / name).exists():
                name += "-again"
            (self.directory / str(step)).rename(self.directory / name)
            log.warning("checkpoint %d %s; it is now called %s", step, reason, name)

    def _prune(self, saved: int) -> None:
        """Deletes the steps that are not kept, now that `saved` is completely written."""
        scores: dict[int, float | None] = {}
        for step in sorted(_steps(self.directory)):
            if step in self._scores and step != saved:
                scores[step] = self._scores[step]
                continue
            with contextlib.suppress(_BrokenError):
                scores[step] = _read_record(self.directory, step)["score"]
        self._scores = scores
        if saved not in scores:
            raise UserError(
                f"checkpoint {saved} is no longer whole in {self.directory}: does another program change it?"
            )
        kept = {saved, *list(scores)[-self.keep :]}
        judged = {step: score for step, score in scores.items() if score is not None}
        if self.keep_best and judged:
            kept.add(min(judged, key=lambda step: judged[step]))
        unwanted = [step for step in scores if step not in kept]
        try:
            if unwanted:
                _flush(self.directory / str(saved))
            for step in unwanted:
                # A kill in the middle of a deletion must not leave half a step under a step's name.
                going = self.directory / f"{step}.deleting"
                (self.directory / str(step)).rename(going)
                shutil.rmtree(going)
        except OSError as error:
            log.warning("an old checkpoint in %s could not be deleted: %s", self.directory, _reason(error))

    def _not_written(self, step: int, reason: str) -> UserError:
        if jax.process_index() == 0:
            for leftover in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        newest = self.newest()
        kept = f"checkpoint {newest} is kept" if newest is not None else "there was none before it"
        return UserError(
            f"checkpoint {step} could not be written in {self.directory}: {reason}; {kept}; "
            "mend that and run the same command again"
        )


def restore_params(directory: Path, abstract_params: PyTree) -> Saved:
    """Returns the newest whole step of a checkpoint directory with its parameters alone as the state.

    They come onto one device of this process, whatever wrote them, where abstract_params names no shardings. Nothing in
    the directory is changed, so that a run may go on in it meanwhile. Raises UserError if there is none or it differs.
    """
    saved, _ = _load_newest(Path(directory).resolve(), {"params": abstract_params}, parts={"params"})
    if saved is None:
        raise UserError(f"there is no checkpoint in {directory}; a work directory that was trained is needed")
    return saved._replace(state=saved.state["params"])


def params_sha256(params: PyTree) -> str:
    """Returns the hex SHA-256 of paths, dtypes, shapes and little-endian bytes of all arrays, in the order of paths.

    Every process of a run must call it; one array at a time is gathered to the host.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(("/".join(keys), leaf) for keys, leaf in _flatten(params)):
        whole = getattr(leaf, "is_fully_addressable", True)
        host = np.ascontiguousarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(host.view(f"u{host.itemsize}").astype(f"<u{host.itemsize}", copy=False).data)
    return digest.hexdigest()


@jax.jit
def checksum(values: Array) -> tuple[Array, Array]:
    """Returns (uint32 checksum, bool all finite) of an array of any dtype up to 64 bits.

    The same on any number of devices: a sum, modulo 2**32, over elements, of their mixed bits times an odd number drawn
    from their index. A change of one element always changes it; so does, but for chance, any exchange or even number
    of flipped signs.
    """
    finite = jnp.isfinite(values).all() if jnp.issubdtype(values.dtype, jnp.floating) else jnp.bool_(True)
    width = values.dtype.itemsize
    if values.dtype == jnp.bool_:
        bits = values.astype(jnp.uint32)
    elif width < 4:
        bits = lax.bitcast_convert_type(values, {1: jnp.uint8, 2: jnp.uint16}[width]).astype(jnp.uint32)
    else:
        bits = lax.bitcast_convert_type(values, jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size % 2**32) + lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(_mix(bits) * (_mix(index) | np.uint32(1)), dtype=jnp.uint32), finite


def _mix(bits: Array) -> Array:
    """A bijection of uint32 in which each bit of the input moves about half of the output's."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _examine(step: int, arrays: "_Flat") -> list[int]:
    """Returns the checksum of each array. Raises NonFinite."""
    results = _checksums([leaf for _, leaf in arrays])
    if bad := ["/".join(keys) for (keys, _), (_, finite) in zip(arrays, results, strict=True) if not finite]:
        raise NonFinite(step, bad)
    return [int(value) for value, _ in results]


def _checksums(leaves: Sequence[Array]) -> list[tuple[Any, Any]]:
    """Returns (checksum, all finite) of each array, on the host."""
    # One program for each shape, all started before the first result is fetched; but on CPU not where devices have to
    # add up: programs under way at once take each other's threads, until each waits for a part that none can compute.
    results: list[Any] = []
    for leaf in leaves:
        devices: list[Any] = list(leaf.sharding.device_set) if isinstance(leaf, Array) else []
        alone = len(devices) > 1 and devices[0].platform == "cpu"
        results.append(jax.device_get(checksum(leaf)) if alone else checksum(leaf))
    return jax.device_get(results)


def _load_newest(
    directory: Path, abstract: dict[str, PyTree], step: int | None = None, parts: set[str] | None = None
) -> tuple[Saved | None, dict[int, str]]:
    """Returns the newest whole step (or None) and the broken ones that are newer, with the reason for each."""
    broken: dict[int, str] = {}
    while True:
        # Listed anew each time: a run that goes on meanwhile deletes old steps and adds newer ones.
        candidate = _from_first_process(lambda: _newest_candidate(directory, broken, step))
        if candidate < 0:
            break
        try:
            saved = _load(directory, candidate, abstract, parts)
        except _BrokenError as reason:
            broken[candidate] = str(reason)
            if step is not None:
                raise UserError(f"checkpoint {step} in {directory} {reason}") from reason
            before = _from_first_process(lambda: _newest_candidate(directory, broken, step))
            if before >= 0:
                _warn(f"checkpoint {candidate} {reason}; going back to {before}")
        else:
            return saved, broken
    if broken:
        reasons = "; ".join(f"{broken_step} {reason}" for broken_step, reason in broken.items())
        raise UserError(
            f"no checkpoint in {directory} is whole: {reasons}; mend one, or begin anew in another directory"
        )
    if step is not None:
        there = f"there are {_listed([str(s) for s in sorted(_steps(directory))])}" if _steps(directory) else "none is"
        raise UserError(f"there is no checkpoint {step} in {directory}; {there}")
    entries = [entry.name for entry in _entries(directory) if not entry.name.startswith(".")]
    leftovers = [name for name in entries if LEFTOVER_NAME.fullmatch(name)]
    if others := sorted(set(entries) - set(leftovers)):
        raise UserError(f"{directory} holds no checkpoint of jaxlm, only {_listed(others)}; another directory is meant")
    if leftovers:
        _warn(f"{directory} holds no checkpoint, only {_listed(leftovers)}, whose writing was interrupted")
    return None, {}


def _newest_candidate(directory: Path, broken: dict[int, str], step: int | None) -> int:
    return max((s for s in _steps(directory) if s not in broken and step in (None, s)), default=-1)


def _load(directory: Path, step: int, abstract: dict[str, PyTree], parts: set[str] | None) -> Saved:
    """Returns a step onto the shardings of the abstract arrays. Raises _BrokenError, and UserError if they differ."""
    record = _all_or_none(lambda: _read_record(directory, step))
    targets = [(keys, _placed(leaf)) for keys, leaf in _flatten(abstract)]
    names = ["/".join(keys) for keys, _ in targets]
    stored = {name: about for name, about in record["arrays"].items() if not parts or name.split("/")[0] in parts}
    _check_fit(f"checkpoint {step} in {directory}", stored, targets)
    leaves = _all_or_none(lambda: _read_arrays(directory / str(step), targets))
    sums = [int(value) for value, _ in _checksums(leaves)]
    if wrong := [name for name, value in zip(names, sums, strict=True) if value != stored[name][2]]:
        what = f"array {wrong[0]} does not match its checksum"
        raise _BrokenError(f"is damaged ({what}{f', nor do {len(wrong) - 1} more' if wrong[1:] else ''})")
    state = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(abstract), leaves)
    return Saved(step, state, record["metadata"])


def _read_arrays(path: Path, targets: "_Flat") -> list[Array]:
    try:
        loaded = _orbax(lambda: ocp.load_checkpointables(path, _nest(targets))) if targets else {}
    except _OrbaxError as error:
        raise _BrokenError(f"cannot be read ({error})") from error
    by_keys = dict(_flatten(loaded))
    return [by_keys[keys] for keys, _ in targets]


def _check_fit(what: str, stored: dict[str, list], targets: "_Flat") -> None:
    """Raises UserError that names the first arrays that are missing, unexpected, or of another shape or dtype."""
    wanted = {"/".join(keys): [list(leaf.shape), str(leaf.dtype)] for keys, leaf in targets}
    text = lambda about: f"{about[1]}{about[0]}"  # noqa: E731
    differences = {
        "it lacks": [name for name in wanted if name not in stored],
        "unexpected in it:": [name for name in stored if name not in wanted],
        "of another shape:": [
            f"{name} ({text(stored[name])} there, {text(about)} here)"
            for name, about in wanted.items()
            if name in stored and stored[name][:2] != about
        ],
    }
    if found := [f"{kind} {_listed(names)}" for kind, names in differences.items() if names]:
        raise UserError(f"{what} does not fit this model: {'; '.join(found)}")


def _read_record(directory: Path, step: int) -> dict[str, Any]:
    """Returns what was saved beside the arrays of a step. Raises _BrokenError unless its files look whole."""
    # Orbax's own reader opens every array for it, which takes longer than writing a small step, and TensorStore 0.1.86
    # never frees the description of an array that Orbax then asks for.
    path = directory / str(step)
    try:
        if not any(path.iterdir()):
            raise _BrokenError("is empty")
        about = json.loads((path / RECORD_NAME).read_bytes())
    except OSError as error:
        raise _BrokenError(f"cannot be read ({_reason(error)})") from error
    except ValueError as error:
        raise _BrokenError("has a damaged record") from error
    record = about.get("custom_metadata") if isinstance(about, dict) else None
    if not isinstance(record, dict) or "crc32" not in record:
        raise _BrokenError("was not written by jaxlm, or lacks its record")
    record = dict(record)
    if record.pop("crc32") != _crc32(record):
        raise _BrokenError("has a damaged record")
    if record["step"] != step:
        raise _BrokenError(f"is a copy of checkpoint {record['step']} under another name")
    parts = {name.split("/")[0] for name in record["arrays"]}
    if missing := [part for part in sorted(parts) if not (path / part).is_dir()]:
        raise _BrokenError(f"lacks its {_listed(missing)}")
    return record


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _entries(directory: Path) -> list[Path]:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; a directory of checkpoints is meant")
    return list(directory.iterdir()) if directory.exists() else []


def _steps(directory: Path) -> set[int]:
    return {int(entry.name) for entry in _entries(directory) if STEP_NAME.fullmatch(entry.name)}


def _flush(directory: Path) -> None:
    """Returns when the files of a directory are on disk, so that a power cut cannot take them any more."""
    for path in (*directory.rglob("*"), directory, directory.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_Flat = Sequence[tuple[tuple[str, ...], Any]]


def _flatten(tree: PyTree) -> _Flat:
    """Returns (keys, leaf) for each array, keys being the names of dict entries, fields and positions on the way."""
    return [
        (tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _nest(arrays: _Flat) -> dict[str, Any]:
    """Returns nested plain dicts, so that a checkpoint depends on nobody's classes."""
    tree: dict[str, Any] = {}
    for keys, leaf in arrays:
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _orbax(call: Callable[[], T]) -> T:
    """Returns call(). Raises _OrbaxError with the reason in one line."""
    context = ocp.Context()
    # Made in the background, a directory that cannot be made leaves threads behind that wait for five minutes.
    context.asynchronous.create_directories_asynchronously = False
    hook, quiet = sys.unraisablehook, lambda record: "never retrieved" not in record.getMessage()
    # A call that fails leaves tasks behind, and Python complains of each when it throws it away.
    sys.unraisablehook = lambda _: None
    logging.getLogger("asyncio").addFilter(quiet)
    try:
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return call()
            except Exception as error:
                if isinstance(_root(error), MemoryError | jax.errors.JaxRuntimeError):
                    raise  # this machine is to blame, not the checkpoint
                reason = _reason(error)
            gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.getLogger("asyncio").removeFilter(quiet)
    # Reads that are still under way will end later, in a thread of TensorStore's that finds the event loop closed.
    sys.unraisablehook = lambda late: None if "loop is closed" in str(late.exc_value) else hook(late)
    raise _OrbaxError(reason)


def _from_first_process(value: Callable[[], int]) -> int:
    """Returns value() of the first process on every process, once all have come here."""
    if jax.process_count() == 1:
        return int(value())
    return int(multihost_utils.broadcast_one_to_all(np.int32(value() if jax.process_index() == 0 else 0)))


def _on_every_process(ok: bool) -> bool:
    return ok if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _all_or_none(read: Callable[[], T]) -> T:
    """Returns what read() returns; a _BrokenError of one process is raised on every process."""
    result, reason = None, ""
    try:
        result = read()
    except _BrokenError as error:
        reason = str(error)
    if not _on_every_process(not reason):
        raise _BrokenError(reason or "cannot be read by another process")
    return cast(T, result)


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        log.warning(text)


def _root(error: BaseException) -> BaseException:
    """Returns the innermost cause, where Orbax hides the reason."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _reason(error: BaseException) -> str:
    """Returns in a line why something failed."""
    error = _root(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, _OrbaxError):
        return str(error)
    text = str(error)
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    # TensorStore says `CODE: where: where: what: details [spec]`.
    text = re.sub(r" \[(tensorstore_spec|source locations)=.*", "", text, flags=re.DOTALL).partition("\n")[0]
    if re.match(r"[A-Z_]+: ", text):
        return ": ".join(text.split(": ")[-2:])[-200:]
    return f"{type(error).__name__}: {text[:200]}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
