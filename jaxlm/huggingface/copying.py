"""Copies of a Hugging Face checkpoint: every tensor and every key as it came in, whatever head the model has."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxlm.huggingface.weights import SHARD_BYTES, Reader, as_dtype, tensor_names, write_tensors
from jaxlm.storage import read_json, write_text


def copy_checkpoint(directory: Path, to: Path, dtype: str | None = None) -> None:
    """Writes the tensors of a checkpoint as safetensors, and its config.json, to another directory.

    Names and values stay as they are; with `dtype`, tensors of floating-point numbers are converted. Raises UserError
    if a tensor holds NaN, infinity or numbers too large for the dtype.
    """
    with Reader(directory) as reader:
        tensors = {name: as_dtype(name, reader.read(name), dtype) for name in tensor_names(directory)}
    write_tensors(to, tensors, SHARD_BYTES)
    if dtype is None:
        copy_files(directory, to, ["config.json"])
        return
    config = with_dtype(read_json(directory / "config.json"), dtype)
    write_text(to / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the content of a config.json with the dtype set, also under its older name if that is present."""
    return config | {name: dtype for name in ("dtype", "torch_dtype") if name == "dtype" or name in config}


def copy_files(directory: Path, to: Path, names: Iterable[str]) -> None:
    """Copies those of the named files that exist."""
    for name in names:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, to / name)
