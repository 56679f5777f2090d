"""The checkpoints of a run: which steps are kept, and which one is restored.

Steps are written in the background, appear under their name only when complete, and are verified array by array when
restored. checkpoint_files.py writes and reads one step; this file decides which directories are steps, which steps are
intact, and which are deleted.
"""

import contextlib
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm.errors import UserError
from jaxlm.runtime.checkpoint_files import (
    TEMPORARY_SUFFIX,
    BrokenStepError,
    OrbaxError,
    Write,
    array_records,
    listed,
    read_record,
    read_step,
    reason,
)
from jaxlm.runtime.checksums import checksums, named_leaves
from jaxlm.runtime.distributed import from_first
from jaxlm.storage import sync_directory
from jaxlm.version import __version__

PyTree = Any
STEP_NAME = re.compile(r"0|[1-9]\d{0,8}")
LEFTOVER_NAME = re.compile(rf"({STEP_NAME.pattern})({re.escape(TEMPORARY_SUFFIX)}.*|\.deleting)")

log = logging.getLogger("jaxlm")


class NonFinite(UserError):
    """A state that must not be saved: `names` are the arrays that contain NaN or infinity, after `step` updates."""

    def __init__(self, step: int, names: list[str]) -> None:
        self.step, self.names = step, names
        super().__init__(f"NaN or infinity in {listed(names)}")


class Saved(NamedTuple):
    """A restored checkpoint: the number of updates done, the arrays, and the metadata given to `save`."""

    step: int
    state: PyTree
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, one directory per step in `directory`.

    Kept are the newest `keep` steps and, with `keep_best`, the step with the best score: the highest one if
    `higher_is_better`, otherwise the lowest. Scores that were saved for the other direction or another `metric` (such
    as the same loss on more rows) cannot be compared with these and are ignored.

    The steps of a directory belong to one history. After an older step has been restored, the first save renames the
    later steps to `superseded-N`: they are the steps of another history, and neither the newest nor the best of this
    one. A step that exists is never written again with other values.

    All processes of a run call its methods together; only the first process renames and deletes. `save` and `wait` are
    for the one run that owns the directory; the other methods change nothing in it.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        keep_best: bool = True,
        higher_is_better: bool = False,
        metric: str = "",
    ) -> None:
        self.directory, self.keep, self.keep_best = Path(directory).resolve(), keep, keep_best
        self.higher_is_better, self.metric = higher_is_better, metric
        self._write: Write | None = None
        self._written: tuple[int, float | None] = (0, None)  # the step, and its score, of the latest write
        self._broken: dict[int, str] = {}
        self._scores: dict[int, float | None] = {}  # of the steps that were intact when last read
        self._cleaned = False
        self._restored: int | None = None  # the step from which the next save continues, until it has been made

    def save(
        self, step: int, state: PyTree, metadata: dict[str, Any], score: float | None = None, wait: bool = False
    ) -> None:
        """Saves a dict of trees of arrays in the background, with metadata (JSON).

        score is the value of the metric that selects the best step; NaN and infinity count as none. A step that was
        saved with the same arrays is left as it is. Raises NonFinite before anything is changed, and UserError if this
        save or the one before it could not be written, or if the step is not later than all others of its history.
        """
        arrays = named_leaves(state)
        sums = checksums(arrays)
        if names := [name for name, (_, finite) in sums.items() if not finite]:
            raise NonFinite(step, names)
        self.wait()
        records = array_records(arrays, sums)
        if from_first(lambda: self._prepare(step, records)):
            return
        score = score if score is not None and math.isfinite(score) else None
        record = {
            "step": step,
            "metadata": json.loads(json.dumps(metadata)),
            "score": score,
            "higher_is_better": self.higher_is_better,
            "metric": self.metric,
            "versions": {"jaxlm": __version__, "jax": jax.__version__},
            "arrays": records,
        }
        try:
            self._write = Write(self.directory, step, arrays, record)
        except OrbaxError as error:
            raise self._not_written(step, str(error)) from error
        self._written = step, score
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the current save is on disk, then deletes the steps that are no longer kept. Raises UserError."""
        if self._write is None:
            return
        step = self._write.step
        try:
            self._write.wait()
        except OrbaxError as error:
            self._write = None
            raise self._not_written(step, str(error)) from error
        self._write = None
        if jax.process_index() == 0:
            self._delete_old(step)

    def close(self) -> None:
        """Waits for the current save. Raises UserError."""
        self.wait()

    def restore(self, abstract_state: PyTree, step: int | None = None) -> Saved | None:
        """Returns the newest intact step, or the given one; None if nothing was ever saved.

        abstract_state is a tree of jax.ShapeDtypeStruct with the shardings to load onto, which may differ from those
        that were saved. An incomplete or damaged step is skipped with a warning. Raises UserError if steps exist but
        none is intact, and if the arrays do not fit.
        """
        self.wait()
        saved, self._broken = _load_newest(self.directory, abstract_state, step)
        self._cleaned, self._restored = False, saved.step if saved else None
        return saved

    def newest(self) -> int | None:
        """Returns the newest step whose files look complete; arrays are not read."""
        for step in sorted(_steps(self.directory), reverse=True):
            if step not in self._broken:
                with contextlib.suppress(BrokenStepError):
                    read_record(self.directory, step)
                    return step
        return None

    def best(self) -> tuple[int, float] | None:
        """Returns the step with the best score, and the score; None if no step has a score that can be compared."""
        scores: dict[int, float] = {}
        if self._write and self._written[1] is not None:
            scores[self._written[0]] = self._written[1]
        for step in self._own_steps() - self._broken.keys():
            with contextlib.suppress(BrokenStepError):
                if (score := self._score(read_record(self.directory, step))) is not None:
                    scores[step] = score
        best = self._best_of(scores)
        return None if best is None else (best, scores[best])

    def is_better(self, score: float) -> bool:
        """Returns whether a score is better than that of every step; False for NaN and infinity."""
        best = self.best()
        if not math.isfinite(score) or best is None:
            return math.isfinite(score)
        return score > best[1] if self.higher_is_better else score < best[1]

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata saved with a step. Raises UserError."""
        try:
            return read_record(self.directory, step)["metadata"]
        except BrokenStepError as error:
            raise UserError(f"checkpoint {step} in {self.directory} {error}") from error

    def _prepare(self, step: int, arrays: dict[str, list]) -> bool:
        """Returns whether the step exists with these arrays; the first save removes what an earlier run left behind."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self._cleaned:
                for entry in self.directory.iterdir():
                    if LEFTOVER_NAME.fullmatch(entry.name):
                        shutil.rmtree(entry)
                for old in _steps(self.directory):
                    self._rename_if_broken(old)
                self._cleaned = True
            if step in self._own_steps():
                self._rename_if_broken(step)
            existing = self._own_steps()
            if step in existing and read_record(self.directory, step)["arrays"] == arrays:
                return True
            if existing and step <= (newest := max(existing)):
                why = "exists with other values" if step in existing else f"is older than checkpoint {newest}"
                raise UserError(
                    f"checkpoint {step} cannot be saved in {self.directory}: it {why}, and no checkpoint is "
                    "overwritten; restore an earlier one to train on from it, or use another directory"
                )
            self._set_aside_later_steps()
        except OSError as error:
            raise self._not_written(step, reason(error)) from error
        return False

    def _own_steps(self) -> set[int]:
        """Returns the steps of this history: those up to the restored one, until a later one is saved."""
        return {step for step in _steps(self.directory) if self._restored is None or step <= self._restored}

    def _set_aside_later_steps(self) -> None:
        """Renames the steps after the restored one, which belong to another history; they are never deleted."""
        if later := sorted(_steps(self.directory) - self._own_steps()):
            for step in later:
                self._rename(step, "superseded")
            log.warning(
                "training continues from checkpoint %d: the later ones in %s (%s) are renamed to superseded-N",
                self._restored, self.directory, listed([str(step) for step in later]),
            )  # fmt: skip
        self._restored = None

    def _rename(self, step: int, word: str) -> str:
        """Renames the directory of a step to `word`-N and returns that name."""
        name = f"{word}-{step}"
        while (self.directory / name).exists():
            name += "-again"
        (self.directory / str(step)).rename(self.directory / name)
        self._scores.pop(step, None)
        return name

    def _rename_if_broken(self, step: int) -> None:
        # A broken step must neither count as the newest nor block its name, but its owner may still be able to repair
        # it: it is renamed, never deleted.
        why = self._broken.pop(step, None)
        try:
            read_record(self.directory, step)
        except BrokenStepError as error:
            why = why or str(error)
        if why:
            log.warning("checkpoint %d %s; renamed to %s", step, why, self._rename(step, "broken"))

    def _delete_old(self, saved: int) -> None:
        """Deletes the steps that are not kept, once `saved` is completely written."""
        scores: dict[int, float | None] = {}
        for step in sorted(_steps(self.directory)):
            if step in self._scores and step != saved:
                scores[step] = self._scores[step]
                continue
            with contextlib.suppress(BrokenStepError):
                scores[step] = self._score(read_record(self.directory, step))
        self._scores = scores
        if saved not in scores:
            raise UserError(
                f"checkpoint {saved} in {self.directory} was damaged after it was written: check whether another "
                "program changes this directory"
            )
        kept = {saved, *list(scores)[-self.keep :]}
        best = self._best_of(scores)
        if self.keep_best and best is not None:
            kept.add(best)
        unwanted = [step for step in scores if step not in kept]
        try:
            if unwanted:
                _flush(self.directory / str(saved))
            for step in unwanted:
                # Renamed first: a deletion that is interrupted must not leave an incomplete step under a step's name.
                deleting = self.directory / f"{step}.deleting"
                (self.directory / str(step)).rename(deleting)
                shutil.rmtree(deleting)
        except OSError as error:
            log.warning("an old checkpoint in %s could not be deleted: %s", self.directory, reason(error))

    def _best_of(self, scores: Mapping[int, float | None]) -> int | None:
        """Returns the step with the best score, the earliest if several have it; None if no step has one."""
        scored = {step: score for step, score in sorted(scores.items()) if score is not None}
        return (max if self.higher_is_better else min)(scored, key=scored.__getitem__) if scored else None

    def _score(self, record: dict[str, Any]) -> float | None:
        """Returns the score in a record, None if it was saved for the other direction or another metric."""
        # Older records lack both: their scores are losses, on rows that are not known.
        direction, metric = record.get("higher_is_better", False), record.get("metric", self.metric)
        return record["score"] if (direction, metric) == (self.higher_is_better, self.metric) else None

    def _not_written(self, step: int, why: str) -> UserError:
        if jax.process_index() == 0:
            for leftover in self.directory.glob(f"{step}{TEMPORARY_SUFFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        newest = self.newest()
        kept = f"checkpoint {newest} is kept" if newest is not None else "there is no earlier checkpoint"
        return UserError(
            f"checkpoint {step} could not be written to {self.directory}: {why}; {kept}; fix that and run the same "
            "command again"
        )


def split_step(path: Path) -> tuple[Path, int | None]:
    """Returns the work directory and the step of a path DIR/checkpoints/N; any other path unchanged, and None.

    A model that another program saved under such a path has a config.json of its own, and is such another path.
    """
    workdir = path.parent.parent
    named = STEP_NAME.fullmatch(path.name) and path.parent.name == "checkpoints"
    if named and (workdir / "config.json").is_file() and not (path / "config.json").exists():
        return workdir, int(path.name)
    return path, None


def find_step(directory: Path, name: int | str) -> int | None:
    """Returns the step of a checkpoint directory that `name` stands for: its number, or "best" by the saved scores.

    "latest" gives None, which `restore_params` takes for the newest intact one. Raises UserError if there is no such
    step, or `name` is something else.
    """
    if name == "latest":
        return None
    if name == "best":
        if best := best_step(directory):
            return best[0]
        raise UserError(
            f"no checkpoint in {directory} was saved at a step that was evaluated, so none is the best; name a step, "
            "or set evaluation.every and checkpoint.every to a common multiple"
        )
    if not STEP_NAME.fullmatch(str(name)):
        raise UserError(f"step={name}: expected a number of updates, best or latest")
    return int(name)


def best_step(directory: Path) -> tuple[int, str] | None:
    """Returns the step with the best score among those saved for the metric and the direction of the newest step.

    Returns the metric in words beside it, and None if no step has a score.
    """
    records = {}
    for step in sorted(_steps(directory)):
        with contextlib.suppress(BrokenStepError):
            records[step] = read_record(directory, step)
    newest = records[max(records)] if records else {}
    higher, metric = newest.get("higher_is_better", False), newest.get("metric")
    scores = {
        step: record["score"]
        for step, record in records.items()
        if record["score"] is not None
        and (record.get("higher_is_better", False), record.get("metric", metric)) == (higher, metric)
    }
    return ((max if higher else min)(scores, key=scores.__getitem__), metric or "loss") if scores else None


def restore_params(directory: Path, abstract_params: PyTree, step: int | None = None) -> Saved:
    """Returns a step of a checkpoint directory, by default the newest intact one, with its parameters as the state.

    Arrays are loaded onto one device of this process where abstract_params has no shardings, whatever mesh saved them.
    Nothing in the directory is changed, so a run may be writing to it. Raises UserError if there is no checkpoint, none
    is intact, the given one is not, or the parameters do not fit.
    """
    saved, _ = _load_newest(Path(directory).resolve(), {"params": abstract_params}, step, parts={"params"})
    if saved is None:
        raise UserError(f"there is no checkpoint in {directory}; use a work directory that was trained")
    return saved._replace(state=saved.state["params"])


def _load_newest(
    directory: Path, abstract: dict[str, PyTree], step: int | None = None, parts: set[str] | None = None
) -> tuple[Saved | None, dict[int, str]]:
    """Returns the newest intact step, or None, and the newer steps that are broken, each with the reason."""
    broken: dict[int, str] = {}
    while True:
        # Listed again each time, because a run in progress deletes old steps and adds new ones.
        candidate = from_first(lambda: _newest_candidate(directory, broken, step))
        if candidate is None:
            break
        try:
            state, record = read_step(directory, candidate, abstract, parts)
        except BrokenStepError as error:
            broken[candidate] = str(error)
            if step is not None:
                raise UserError(f"checkpoint {step} in {directory} {error}") from error
            before = from_first(lambda: _newest_candidate(directory, broken, step))
            if before is not None:
                _warn(f"checkpoint {candidate} {error}; falling back to checkpoint {before}")
        else:
            return Saved(candidate, state, record["metadata"]), broken
    if broken:
        reasons = "; ".join(f"{number} {why}" for number, why in broken.items())
        raise UserError(
            f"no checkpoint in {directory} is intact: {reasons}; repair one, or start again in another directory"
        )
    if step is not None:
        steps = [str(number) for number in sorted(_steps(directory))]
        available = f"available: {listed(steps)}" if steps else "the directory has no checkpoints"
        raise UserError(f"there is no checkpoint {step} in {directory}; {available}")
    entries = [entry.name for entry in _entries(directory) if not entry.name.startswith(".")]
    leftovers = [name for name in entries if LEFTOVER_NAME.fullmatch(name)]
    if others := sorted(set(entries) - set(leftovers)):
        raise UserError(
            f"{directory} contains no checkpoint written by jaxlm, only {listed(others)}; use another directory"
        )
    if leftovers:
        _warn(f"{directory} contains no checkpoint, only {listed(leftovers)} of an interrupted save")
    return None, {}


def _newest_candidate(directory: Path, broken: dict[int, str], step: int | None) -> int | None:
    return max((s for s in _steps(directory) if s not in broken and step in (None, s)), default=None)


def _entries(directory: Path) -> list[Path]:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory of checkpoints")
    return list(directory.iterdir()) if directory.exists() else []


def _steps(directory: Path) -> set[int]:
    return {int(entry.name) for entry in _entries(directory) if STEP_NAME.fullmatch(entry.name)}


def _flush(directory: Path) -> None:
    """Flushes a directory and everything in it to disk, so that a power cut cannot lose it."""
    for path in (*directory.rglob("*"), directory, directory.parent):
        sync_directory(path)  # works for files too


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        log.warning(text)
