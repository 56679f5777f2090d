"""Tensors that are no parameters, and files that hold something else, are named."""

import struct

import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.huggingface.weights import Reader, tensor_names


def write_safetensors(directory, dtype: str, size: int) -> None:
    header = f'{{"w": {{"dtype": "{dtype}", "shape": [2], "data_offsets": [0, {2 * size}]}}}}'.encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * (2 * size))


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("I64", 8), ("U8", 1), ("BOOL", 1)])
def test_quantized_and_whole_numbers_are_not_taken_for_parameters(tmp_path, dtype, size):
    write_safetensors(tmp_path, dtype, size)
    with Reader(tmp_path) as reader, pytest.raises(UserError, match=f"w has the dtype {dtype}, not float32"):
        reader.read_parameter("w")


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2)])
def test_every_floating_point_type_is_read_as_float32(tmp_path, dtype, size):
    write_safetensors(tmp_path, dtype, size)
    with Reader(tmp_path) as reader:
        assert reader.read_parameter("w").dtype == np.float32


def test_files_of_torch_are_read_the_same_way(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "pytorch_model.bin"
    torch.save([torch.zeros(2)], file)
    with pytest.raises(UserError, match="is damaged or contains more than tensors"):
        tensor_names(tmp_path)
    torch.save({"f": torch.ones(2, dtype=torch.bfloat16), "i": torch.ones(2, dtype=torch.int64),
                "q": torch.ones(2).to(torch.float8_e4m3fn)}, file)  # fmt: skip
    with Reader(tmp_path) as reader:
        assert reader.read_parameter("f").tolist() == [1, 1]
        for name in ("i", "q"):
            with pytest.raises(UserError, match=f"{name} has the dtype"):
                reader.read_parameter(name)
