"""Tensors in files: safetensors, one file or several with an index, and what pytorch_model.bin holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.storage import write_text

WEIGHTS = "model.safetensors"


class Reader:
    """Tensors of a directory by name, whichever of its files holds them."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._files = directory, _file_of(directory)
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def _handle(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _read_torch(file) if file.suffix == ".bin" else _open_safetensors(file)
        return self._open[file]

    def shape(self, name: str) -> tuple[int, ...]:
        handle = self._handle(name)
        return tuple(handle[name].shape if isinstance(handle, dict) else handle.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        handle = self._handle(name)
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)


def tensor_names(directory: Path) -> list[str]:
    """Returns the names of all tensors. Raises UserError where there are no weights, or damaged ones."""
    return list(_file_of(directory))


def write_tensors(directory: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> list[Path]:
    """Writes safetensors, several with an index above `shard_bytes`, reads all back, and returns the files.

    Raises UserError where a file cannot be written, or where what is read back is not what was written.
    """
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    for name, array in tensors.items():
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > shard_bytes:
            shards.append({})
        # A transposed view would be written in another order (safetensors 0.8).
        shards[-1][name] = np.ascontiguousarray(array)
    files = [directory / WEIGHTS]
    if len(shards) > 1:
        files = [directory / f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    try:
        for file, shard in zip(files, shards, strict=True):
            save_file(shard, file, {"format": "pt"})
        if len(shards) > 1:
            places = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
            total = sum(array.nbytes for array in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": places}
            write_text(directory / f"{WEIGHTS}.index.json", json.dumps(index, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror or error}") from error
    with Reader(directory) as reader:
        for name, array in tensors.items():
            back = reader.read(name)
            if back.dtype != array.dtype or back.shape != array.shape or back.tobytes() != array.tobytes():
                raise UserError(f"{name} was not read back as it was written to {directory}: is the disk in order?")
    return files


def _file_of(directory: Path) -> dict[str, Path]:
    """Returns the file that holds each tensor."""
    for single, index in ((WEIGHTS, f"{WEIGHTS}.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (directory / single).is_file():
            return dict.fromkeys(_names_in(directory / single), directory / single)
        if (directory / index).is_file():
            return _sharded(directory, index)
    others = sorted({p.name for pattern in ("*.h5", "*.msgpack", "*.ckpt*") for p in directory.glob(pattern)})
    hint = f" ({', '.join(others)} are of other frameworks)" if others else ""
    raise UserError(f"{directory} holds no weights: no {WEIGHTS} and no pytorch_model.bin{hint}")


def _sharded(directory: Path, index: str) -> dict[str, Path]:
    places = read_json(directory / index, dict).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{directory / index} has no weight_map: fetch it again")
    files = {name: directory / str(file) for name, file in places.items()}
    for file in dict.fromkeys(files.values()):
        if file.parent != directory or not file.is_file():
            raise UserError(f"{directory} lacks {file.name}, which {index} names: fetch it again")
        inside = set(_names_in(file))
        lost = [name for name, place in files.items() if place == file and name not in inside]
        if lost:
            raise UserError(f"{file} lacks {some_of(lost)}, which {index} names: fetch it again")
    return files


def _names_in(file: Path) -> list[str]:
    return list(_read_torch(file)) if file.suffix == ".bin" else list(_open_safetensors(file).keys())


def _open_safetensors(file: Path) -> Any:
    import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is cut short or damaged ({error}): fetch it again") from error


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a pytorch_model.bin, read by torch's loader that takes nothing but tensors."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file.parent} has its weights in {file.name} only, which needs torch: install it, or convert the file"
            " where Transformers is, by AutoModelForMaskedLM.from_pretrained(DIR).save_pretrained(NEW)"
        ) from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file} is damaged, or holds more than tensors ({type(error).__name__}): it is not read"
        ) from error
    return {name: value.float().numpy() for name, value in content.items() if isinstance(value, torch.Tensor)}


def read_json(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is no valid JSON ({error}): fetch it again") from error
    if not isinstance(content, kind):
        raise UserError(f"{file} holds no JSON {'object' if kind is dict else 'array'}: fetch it again")
    return content


def some_of(problems: list[str], most: int = 6) -> str:
    """Returns the first few of a list as text, and how many more there are."""
    more = f", and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
