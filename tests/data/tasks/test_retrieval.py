"""Rows of texts that belong together, with hard negatives or similarities."""

import logging

import numpy as np
import pytest

from jaxlm.data.tasks.table import read_task
from jaxlm.errors import UserError

PAIRS = {"objective": "embedding", "text": ("anchor", "positive")}


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_example_is_an_anchor_a_positive_and_its_hard_negatives(task_config, tmp_path):
    file = write(
        tmp_path / "a.tsv", "anchor\tpositive\thard\tother", "the cat\ta river\tthe house\tthe cat",
        "my brother\ta river\t\tthe harbour",
    )  # fmt: skip
    config = task_config(file, negatives=("hard", "other"), **PAIRS)
    dev = write(tmp_path / "b.tsv", "anchor\tpositive", "the house\tthe cat")
    config.task.evaluation = (f"dev={dev}",)
    data = read_task(config)
    assert data.labels == ()
    assert data.train.example.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.train.columns["role"].tolist() == [0, 1, 2, 3, 0, 1, 3]
    text = data.train.columns["text"].tolist()
    assert text[0] == text[3]
    assert text[1] == text[5]
    assert len(set(text)) == 5
    assert data.tokenizer.decode(data.train.tokens[2][1:-1]) == "the house"
    assert data.sets["dev"].columns["role"].tolist() == [0, 1]  # negatives are needed for training only


def test_texts_are_equal_if_the_model_cannot_tell_them_apart_prompts_aside(task_config, tmp_path):
    file = write(tmp_path / "a.tsv", "anchor\tpositive", "the cat\ta river", "a river\tthe  cat ")
    data = read_task(task_config(file, query_prompt="my ", document_prompt="his ", **PAIRS))
    assert data.train.columns["text"].tolist() == [0, 1, 1, 0]
    spoken = [data.tokenizer.decode(tokens[1:-1]) for tokens in data.train.tokens]
    assert spoken == ["my the cat", "his a river", "my a river", "his the cat"]


def test_similarities_are_mapped_to_cosines(task_config, tmp_path):
    file = write(tmp_path / "a.tsv", "anchor\tpositive\tlabel", "the cat\ta river\t1", "a\tb\t4", "c\td\t")
    config = task_config(file, loss="cosine_mse", score_range=(1, 5), **PAIRS)
    columns = read_task(config).train.columns
    assert columns["labels"].tolist() == [0, 0, 0.75, 0.75, 0, 0]
    assert columns["weights"].tolist() == [1, 1, 1, 1, 0, 0]
    config.task.update(loss="cosent", score_range=())  # only the order matters
    assert read_task(config).train.columns["labels"].tolist() == [1, 1, 4, 4, 0, 0]


@pytest.mark.parametrize(
    ("lines", "task", "message"),
    [
        (["anchor\tpositive", "a\tb", "a\t "], {}, r"a\.tsv, line 3: positive is empty; fix the file, or set"),
        (["anchor\tother", "a\tb"], {}, r"line 1: there is no column positive; the columns are anchor, other"),
        (["anchor\tpositive", "a\tb"], {"negatives": ("hard",)}, r"there is no column hard; .* set task\.negatives"),
        (["anchor\tpositive", "a\tb"], {"negatives": ("positive",)}, r"task\.negatives=positive: must be other"),
        (["anchor\tpositive", "a\tb"], {"text": ("anchor",)}, r"task\.text=anchor: train\.objective=embedding needs"),
        (["anchor\tpositive", "a\tb"], {"loss": "cosent"}, r"there is no column label; .* set task\.label"),
        (
            ["anchor\tpositive\tlabel", "a\tb\t3"],
            {"loss": "cosine_mse"},
            r"a\.tsv, line 2: the label 3\.0 in label is not between -1 and 1; set task\.score_range",
        ),
        (
            ["anchor\tpositive\tlabel", "a\tb\t3"],
            {"loss": "cosent", "score_range": (5.0, 1.0)},
            r"task\.score_range=5,1: expected the lowest and the highest value, such as 1,5",
        ),
        (
            ["anchor\tpositive\tlabel", "a\tb\t3"],
            {"loss": "cosent", "negatives": ("c",)},
            r"task\.negatives does not apply to task\.loss=cosent",
        ),
        (["anchor\tpositive\tlabel", "a\tb\t"], {"loss": "cosent"}, r"no row has a label in label; set task\.label"),
        (["anchor\tpositive\tlabel", "a\tb\tgood"], {"loss": "cosent"}, r"line 2: the label good in label is not a"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(task_config, tmp_path, lines, task, message):
    with pytest.raises(UserError, match=message):
        read_task(task_config(write(tmp_path / "a.tsv", *lines), **PAIRS | task))


def test_text_columns_of_other_types_are_named_with_their_setting(task_config, tmp_path):
    file = write(tmp_path / "a.jsonl", '{"anchor": "a", "positive": "b", "hard": ["c"]}')
    with pytest.raises(UserError, match=r"line 1: hard=.*: expected text; set task\.negatives to a column with text"):
        read_task(task_config(file, negatives=("hard",), **PAIRS))


def test_empty_texts_may_be_skipped(task_config, tmp_path, caplog):
    file = write(tmp_path / "a.tsv", "anchor\tpositive", "the cat\ta river", "\tb", "a\t")
    with caplog.at_level(logging.WARNING, "jaxlm"):
        data = read_task(task_config(file, bad_rows="skip", **PAIRS))
    assert len(data.train) == 1
    assert "2 rows are skipped; the first is" in caplog.text
    assert "line 3: anchor is empty" in caplog.text
    write(file, "anchor\tpositive", "\tb")
    with pytest.raises(UserError, match=r"a\.tsv: no row can be used; the first is .*line 2: anchor is empty"):
        read_task(task_config(file, bad_rows="skip", **PAIRS))


def test_the_rows_of_an_anchor_are_on_one_side_of_the_split(task_config, tmp_path):
    file = write(tmp_path / "a.tsv", "anchor\tpositive", *[f"the cat {n % 20}\ta river {n}" for n in range(100)])
    config = task_config(file, **PAIRS)
    config.evaluation.select, config.evaluation.select_fraction = "split", 0.3
    data = read_task(config)
    sides = [{row.values["anchor"] for row in examples.rows} for examples in (data.train, data.sets["selection"])]
    assert not sides[0] & sides[1]
    assert len(sides[1]) > 1


def test_truncated_examples_are_counted_once(task_config, tmp_path, caplog):
    config = task_config(
        write(tmp_path / "a.tsv", "anchor\tpositive", "the cat " * 40 + "\t" + "a river " * 40), **PAIRS
    )
    with caplog.at_level(logging.WARNING, "jaxlm"):
        data = read_task(config)
    assert "1 of 1 examples are longer than 32 tokens" in caplog.text
    assert [len(tokens) for tokens in data.train.tokens] == [32, 32]
    assert data.train.columns["role"].dtype == np.int32
