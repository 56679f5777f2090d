"""The files of predictions: each format has the same values, and only such files are recognised."""

import csv
import io
import json

import pytest
from pyarrow import parquet

from jaxlm.errors import UserError
from jaxlm.use.classify import VERB
from jaxlm.use.prediction_formats import WRITERS, holds_predictions
from jaxlm.use.tag import VERB as TAG

CLASSES = [
    {"label": 'a "b", c', "probability": 0.1 + 0.2, "probabilities": {'a "b", c': 0.1 + 0.2, "é\n": float("nan")}},
    {"label": "é\n", "probability": 1e-30, "probabilities": {'a "b", c': 1.0, "é\n": 0.0}},
]
TAGS = [{"words": ["Zoë", "met"], "tags": ["B-PER", "O"]}, {"words": [], "tags": []}]
ANSWERS = [{"id": "1", "text": "a", "n_best": [{"text": "a"}]}, {"id": "2", "text": "", "n_best": []}]


def written(ending, predictions):
    file = io.BytesIO()
    WRITERS[ending](file, iter(predictions))
    return file.getvalue()


def test_tables_have_a_column_for_each_number():
    rows = list(csv.reader(io.StringIO(written(".csv", CLASSES).decode(), newline="")))
    assert rows == [
        ["label", "probability", 'probabilities.a "b", c', "probabilities.é\n"],
        ['a "b", c', "0.30000000000000004", "0.30000000000000004", ""],
        ["é\n", "1e-30", "1.0", "0.0"],
    ]
    assert written(".tsv", [{"score": 0.5, "rank": 1}, {"score": -2.0, "rank": 2}]) == b"score\trank\n0.5\t1\n-2.0\t2\n"
    with pytest.raises(UserError, match=r"has a tab or a line end, which a \.tsv file cannot contain"):
        written(".tsv", CLASSES)
    assert json.loads(list(csv.reader(written(".csv", ANSWERS).decode().splitlines()))[1][2]) == [{"text": "a"}]


@pytest.mark.parametrize("predictions", [CLASSES[1:], TAGS, ANSWERS])
def test_parquet_and_json_lines_have_the_same_values(predictions):
    assert parquet.read_table(io.BytesIO(written(".parquet", predictions))).to_pylist() == predictions
    assert [json.loads(line) for line in written(".jsonl", predictions).decode().splitlines()] == predictions


def test_conll_columns_have_one_tag_for_each_word():
    assert written(".conll", TAGS).decode() == "Zoë\tB-PER\nmet\tO\n\n\n"
    for word in ("", "a\tb", "a\nb"):
        with pytest.raises(UserError, match=r"sentence 1: the word .* is empty or has a tab or a line end"):
            written(".conll", [{"words": [word], "tags": ["O"]}])


def test_an_id_has_one_answer():
    assert json.loads(written(".json", ANSWERS)) == {"1": "a", "2": ""}
    with pytest.raises(UserError, match="2 ids occur more than once in the input"):
        written(".json", [*ANSWERS, *ANSWERS])


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_only_files_of_predictions_are_recognised(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    predictions = [{"label": "a", "probability": 0.5, "probabilities": {"a": 0.5, "b": 0.5}}]
    file.write_bytes(written(ending, predictions))
    assert holds_predictions(file, VERB.keys)
    assert not holds_predictions(file, (("score", "rank"),))
    for other in ({"label": "a", "sentence": "the cat"}, {"label": "a"}, predictions[0] | {"text": "the cat"}):
        file.write_bytes(written(ending, [other]))
        assert not holds_predictions(file, VERB.keys)
    # A line longer than the fields that Python's csv reads, and the line ends of old text files.
    for damaged in (b"", b"\0\xff", b"[1]", b"x" * 200_000, b"label\rcalm\r"):
        file.write_bytes(damaged)
        assert not holds_predictions(file, VERB.keys)


def test_tagged_words_may_be_training_data_and_are_never_recognised(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(written(".jsonl", TAGS))
    assert not holds_predictions(tmp_path / "a.jsonl", TAG.keys)
