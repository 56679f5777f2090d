"""A pipe in place of a file ends in one sentence: reading it would wait for its writer forever."""

import os

import numpy as np
import pytest

from jaxlm.data.prepared import read_record
from jaxlm.errors import UserError
from jaxlm.run import _known_data
from jaxlm.runtime.run_log import RunLog, read_metrics
from jaxlm.use.loading import _token_counts


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metrics.jsonl", read_metrics),
        ("metrics.jsonl", lambda folder: RunLog(folder, None, tensorboard=False, curve=False)),
        ("data.json", lambda folder: _known_data(folder / "data.json")),
        ("prepared.json", read_record),
        ("token_counts.npy", lambda folder: _token_counts(folder / "token_counts.npy", 80)),
    ],
)
def test_a_pipe_in_place_of_a_file_is_an_error(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: it is a pipe, a socket or a device"):
        read(tmp_path)


def test_token_counts_with_a_header_of_any_size_are_rejected(tmp_path):
    file = tmp_path / "token_counts.npy"
    np.save(file, np.ones(80, np.int64))
    whole = file.read_bytes()
    for shape in (b"(10**9", b"(99999999999999,)", b"(" * 60, b"(-1,)"):
        file.write_bytes(whole.replace(b"(80,), }" + b" " * (len(shape) - 5), shape + b", }"))
        with pytest.raises(UserError, match="is missing or damaged"):
            _token_counts(file, 80)
