"""Damaged records beside a model: an error that names the file, or a part that is left out and computed again."""

import json
from types import SimpleNamespace

import pytest

from jaxlm.data.prepared import read_record
from jaxlm.errors import UserError
from jaxlm.huggingface.conversion import SOURCE_CONFIG
from jaxlm.use.export import _base_config
from jaxlm.use.model_card import _documents
from jaxlm.use.parts import finished_parts


@pytest.mark.parametrize(
    ("content", "says"),
    [({"a": 1}, "lacks model_type"), ({"model_type": ["bert"]}, r"model_type=\['bert'\]: expected text")],
)
def test_the_family_of_the_original_checkpoint_must_be_text(tmp_path, content, says):
    (tmp_path / SOURCE_CONFIG).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{SOURCE_CONFIG}.*{says}"):
        _base_config(SimpleNamespace(source=None, directory=tmp_path))


@pytest.mark.parametrize("content", [b"caf\xe9", b"{}", b"[]", b'{"directory": 3}', b'{"directory": "a\\u0000b"}'])
def test_a_model_card_leaves_out_a_training_text_whose_record_is_damaged(tmp_path, content):
    (tmp_path / "data.json").write_bytes(content)
    assert _documents(tmp_path) == ""


def test_a_path_with_a_nul_character_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_record(tmp_path / "a\0b")


def test_a_damaged_record_of_parts_means_that_no_part_is_finished(tmp_path):
    (tmp_path / "parts.jsonl").write_bytes(b"caf\xe9\n")
    assert finished_parts(tmp_path, lambda number, part: True) == []


def test_a_model_card_leaves_out_the_size_of_another_text(tmp_path):
    count = {"train/0": {"documents": 3, "bytes": 2_000_000, "tokens": 500}}
    (tmp_path / "prepared.json").write_text(json.dumps({"stores": count, "fingerprint": "a"}))
    (tmp_path / "data.json").write_text(json.dumps({"directory": str(tmp_path), "fingerprint": "a"}))
    assert _documents(tmp_path) == "3 documents, 2.0 MB, 500 tokens"
    (tmp_path / "data.json").write_text(json.dumps({"directory": str(tmp_path), "fingerprint": "b"}))
    assert _documents(tmp_path) == ""
