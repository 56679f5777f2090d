"""The predictions for the rows of a file, written in parts so that a stopped command can continue."""

import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.data.examples import fingerprint
from jaxlm.evaluation.task_evaluation import Outputs
from jaxlm.runtime.checksums import params_sha256
from jaxlm.storage import atomic_path, beside, lock, sync_directory
from jaxlm.text.labelled import Row
from jaxlm.use.parts import append_part, check_identity, clear_line, finished_parts, show_rate
from jaxlm.use.prediction_formats import WRITERS
from jaxlm.use.task_model import TaskModel, joined_outputs
from jaxlm.version import __version__

PART_SEGMENTS = 4096  # least segments in a part, but in the last


class Predicted(NamedTuple):
    """What a command wrote; the seconds are those of this process, compilation and files included."""

    examples: int
    truncated: int  # examples longer than the model's maximum length
    seconds: float


def predict_file(model: TaskModel, rows: list[Row], name: str, output: Path) -> Predicted:
    """Writes what a model predicts for each row, in order, in the format that the ending of `output` names.

    Outputs are collected in a hidden folder beside `output`, which is written when all are complete, with the same
    bytes whether the command was interrupted or not. `name` is that of the input, for messages. Raises UserError.
    """
    begin, folder = time.monotonic(), beside(output, "parts")
    examples = model.encode(rows, name)
    folder.mkdir(exist_ok=True)
    busy = f"{folder} is in use by another process: wait until it ends, or set another --output"
    with lock(folder / "lock", busy):
        parts: list[Outputs] = []
        done = finished_parts(folder, lambda number, part: _read_whole(folder, number, part, parts))
        check_identity(folder, _identity(model, examples), bool(done))
        segments = first = sum(part["segments"] for part in done)
        held: list[Outputs] = []
        count = 0
        for outputs in model.batches(examples, sum(part["batches"] for part in done)):
            held.append(outputs)
            count += len(next(iter(outputs.values())))
            if count >= PART_SEGMENTS or segments + count == len(examples.tokens):
                parts.append(joined_outputs(iter(held)))
                _write_part(folder, len(parts) - 1, parts[-1])
                append_part(folder, {"batches": len(held), "segments": count})
                segments, held, count = segments + count, [], 0
            rate = (segments + count - first) / (time.monotonic() - begin)
            rows_done = int(np.searchsorted(examples.first, segments + count, "right")) - 1
            show_rate("rows", rows_done, rate * len(rows) / len(examples.tokens), len(rows))
        with atomic_path(output) as temporary, open(temporary, "wb") as file:
            WRITERS[output.suffix](file, model.predictions(joined_outputs(iter(parts)), examples))
        sync_directory(output.parent)  # before the parts are removed
        shutil.rmtree(folder)
    clear_line()
    return Predicted(len(rows), examples.truncated, time.monotonic() - begin)


def _identity(model: TaskModel, examples: Any) -> dict[str, Any]:
    """Returns everything that the outputs depend on."""
    return {
        "input": fingerprint({"": examples}),
        "model": params_sha256(model.params),
        "objective": model.objective,
        "labels": list(model.labels),
        "label_words": list(model.config.task.label_words),
        "architecture": repr(model.trained.encoder),
        "compute_dtype": model.compute_dtype,
        "devices": f"{jax.device_count()} {jax.devices()[0].platform}",
        "jax": jax.__version__,
        "jaxlm": __version__,
    }


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.npz"


def _write_part(folder: Path, number: int, outputs: Outputs) -> None:
    content: dict[str, Any] = {}
    for name, arrays in outputs.items():
        content[f"{name}.values"] = np.concatenate([array.ravel() for array in arrays])
        content[f"{name}.shapes"] = np.array([array.shape for array in arrays], np.int64)
    with atomic_path(_part(folder, number)) as temporary, open(temporary, "wb") as file:
        np.savez(file, **content)


def _read_part(file: Path) -> Outputs:
    """Returns what `_write_part` wrote. Raises ValueError if the file is missing or damaged."""
    found: dict[str, list[np.ndarray]] = {}
    try:
        if not file.is_file():  # opening a pipe would wait for its writer
            raise ValueError("there is no part")
        with np.load(file, allow_pickle=False) as content:
            for key in content.files:
                name, _, what = key.rpartition(".")
                if what == "values":
                    values, start, found[name] = content[key], 0, []
                    for shape in content[f"{name}.shapes"].tolist():
                        size = int(np.prod(shape, dtype=np.int64))
                        found[name].append(values[start : start + size].reshape(shape))
                        start += size
    except (OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(str(error)) from error
    return found


def _read_whole(folder: Path, number: int, part: dict[str, int], parts: list[Outputs]) -> bool:
    """Returns whether a part is complete, and adds it to `parts` if so."""
    outputs = _read_part(_part(folder, number))
    whole = part["batches"] > 0 and all(len(arrays) == part["segments"] for arrays in outputs.values())
    if whole:
        parts.append(outputs)
    return whole
