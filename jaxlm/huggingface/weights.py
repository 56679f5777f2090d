"""Tensors in checkpoint files: safetensors and pytorch_model.bin, in one file or several with an index."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.errors import UserError
from jaxlm.storage import read_json, reason, write_text
from jaxlm.typed import Record

WEIGHTS = "model.safetensors"
SHARD_BYTES = 5 * 10**9  # largest file that is written, as in Transformers
_FLOATS = ("f64", "f32", "f16", "bf16", "float64", "float32", "float16", "bfloat16")  # in safetensors and in NumPy


class Reader:
    """Reads the tensors of a directory by name, from whichever of its files contains them."""

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

    def read_parameter(self, name: str) -> np.ndarray:
        """Returns a tensor as float32. Raises UserError if it holds whole numbers or quantized ones."""
        handle = self._handle(name)
        dtype = str(handle[name].dtype if isinstance(handle, dict) else handle.get_slice(name).get_dtype())
        if dtype.lower() not in _FLOATS:
            raise UserError(
                f"{self._files[name]}: {name} has the dtype {dtype}, not float32, float16 or bfloat16: convert the"
                " weights, or use those that are not quantized"
            )
        return self.read(name).astype(np.float32)


def tensor_names(directory: Path) -> list[str]:
    """Returns the names of all tensors. Raises UserError if the weights are missing or damaged."""
    return list(_file_of(directory))


def write_tensors(directory: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> list[Path]:
    """Writes tensors to safetensors files of at most `shard_bytes` each, with an index if there are several.

    Returns the files. Raises UserError if a file cannot be written, or if reading it back gives other values.
    """
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    for name, array in tensors.items():
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > shard_bytes:
            shards.append({})
        # safetensors 0.8 writes a transposed view in the wrong order
        shards[-1][name] = np.ascontiguousarray(array)
    files = [directory / WEIGHTS]
    if len(shards) > 1:
        files = [directory / f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    try:
        for file, shard in zip(files, shards, strict=True):
            file.touch()
            mode = file.stat().st_mode  # as the umask wants it; safetensors makes files that only their owner can read
            save_file(shard, file, {"format": "pt"})
            file.chmod(mode)
        if len(shards) > 1:
            weight_map = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
            total = sum(array.nbytes for array in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_text(directory / f"{WEIGHTS}.index.json", json.dumps(index, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {reason(error)}") from error
    with Reader(directory) as reader:
        for name, array in tensors.items():
            back = reader.read(name)
            if back.dtype != array.dtype or back.shape != array.shape or back.tobytes() != array.tobytes():
                raise UserError(f"{name} has other values after it was written to {directory}: check the disk")
    return files


def is_float(dtype: np.dtype) -> bool:
    """Returns whether a dtype is one of floating-point numbers, bfloat16 included."""
    return bool(jax.dtypes.issubdtype(dtype, np.floating))


def as_dtype(name: str, array: np.ndarray, dtype: np.dtype | str | None) -> np.ndarray:
    """Returns the tensor `name` in a dtype of floating-point numbers, or in its own if `dtype` is None or it holds
    integers. Raises UserError that names the tensor if it holds NaN or infinity, or numbers too large for the dtype."""
    if not is_float(array.dtype):
        return array
    check_finite(name, array)
    if dtype is None:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(_dtype(dtype))
    if not np.isfinite(result).all():
        largest = float(np.abs(array).max())
        raise UserError(f"{name} has values up to {largest:.4g}, too large for {result.dtype}: use --dtype=float32")
    return result


def check_finite(name: str, array: np.ndarray, where: str = "") -> None:
    """Raises UserError if a tensor of floating-point numbers, which is in `where`, holds NaN or infinity."""
    if not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise UserError(f"{name}{where and ' in ' + where} contains {what}: the weights are damaged; use other ones")


def _dtype(name: np.dtype | str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _file_of(directory: Path) -> dict[str, Path]:
    """Returns the file of each tensor."""
    for single, index in ((WEIGHTS, f"{WEIGHTS}.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (directory / single).is_file():
            return dict.fromkeys(_names_in(directory / single), directory / single)
        if (directory / index).is_file():
            return _sharded(directory, index)
    others = sorted({p.name for pattern in ("*.h5", "*.msgpack", "*.ckpt*") for p in directory.glob(pattern)})
    hint = f"; {', '.join(others)} cannot be read" if others else ""
    raise UserError(f"{directory} contains no weights: neither {WEIGHTS} nor pytorch_model.bin{hint}")


def _sharded(directory: Path, index: str) -> dict[str, Path]:
    weight_map = Record(directory / index, read_json(directory / index)).record("weight_map")
    files = {name: directory / weight_map.text(name) for name in weight_map.content}
    if not files:
        raise UserError(f"{directory / index} lists no tensors in weight_map: fetch it again")
    for file in dict.fromkeys(files.values()):
        if file.parent != directory or not file.is_file():
            raise UserError(f"{directory} lacks {file.name}, which is listed in {index}: fetch it again")
        inside = set(_names_in(file))
        missing = [name for name, other in files.items() if other == file and name not in inside]
        if missing:
            raise UserError(f"{file} lacks {some_of(missing)}, listed in {index}: fetch it again")
    return files


def _names_in(file: Path) -> list[str]:
    return list(_read_torch(file)) if file.suffix == ".bin" else list(_open_safetensors(file).keys())


def _open_safetensors(file: Path) -> Any:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is cut short or damaged ({error}): fetch it again") from error


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a pytorch_model.bin, read by torch without running any code in the file."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file.parent} has weights in {file.name} only, which needs torch: install it, or convert the file with"
            " AutoModelForMaskedLM.from_pretrained(DIR).save_pretrained(NEW) where Transformers is installed"
        ) from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        return {name: _to_numpy(value) for name, value in tensors.items()}
    except Exception as error:
        raise UserError(
            f"{file} is damaged or contains more than tensors ({type(error).__name__}): get the weights as safetensors"
        ) from error
    return {name: _to_numpy(value) for name, value in content.items() if isinstance(value, torch.Tensor)}


def _to_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor as an array of the same dtype, and quantized numbers as their bytes."""
    import torch

    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return tensor.view(torch.uint8).numpy()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_dtype("bfloat16"))
    return tensor.numpy()


def some_of(items: list[str], most: int = 6) -> str:
    """Returns the first `most` items of a list as text, followed by the number of the others."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
