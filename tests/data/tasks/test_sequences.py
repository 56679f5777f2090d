"""The rows of labelled files as examples of classification, multi-label classification and regression."""

import json

import numpy as np
import pytest

from jaxlm.data.tasks.table import check_task, read_task, shared_labels
from jaxlm.errors import UserError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'sentence\tlabel\na "cat\tyes\nthe dog" here\tno\n'),
        ("a.csv", 'sentence,label\n"a ""cat",yes\n"the dog"" here",no\n'),
        ("a.jsonl", '{"sentence": "a \\"cat", "label": "yes"}\n{"sentence": "the dog\\" here", "label": "no"}\n'),
    ],
)
def test_every_format_gives_the_same_examples(task_config, tmp_path, name, content):
    (tmp_path / name).write_text("\ufeff" + content, encoding="utf-8")
    data = read_task(task_config(tmp_path / name))
    assert data.labels == ("no", "yes")
    assert data.train.columns["labels"].tolist() == [1, 0]
    for tokens, text in zip(data.train.tokens, ['a "cat', 'the dog" here'], strict=True):
        assert tokens[0] == data.tokenizer.begin_id
        assert tokens[-1] == data.tokenizer.end_id
        assert tokens[1:-1].tolist() == data.tokenizer.encode(text).ids.tolist()


def test_parquet_gives_the_same_examples(task_config, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"sentence": ["a cat", "a dog"], "label": [1, 0], "other": [None, 2.5]}), tmp_path / "a.parquet"
    )
    data = read_task(task_config(tmp_path / "a.parquet"))
    assert data.labels == ("0", "1")
    assert data.train.columns["labels"].tolist() == [1, 0]


def test_columns_are_numbers_in_a_file_without_a_header(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("id1\t0\tthe cat sees\nid2\t1\ta river\n")
    data = read_task(task_config(tmp_path / "a.tsv", header=False, text=("2",), label="1"))
    assert data.train.columns["labels"].tolist() == [0, 1]
    assert data.tokenizer.decode(data.train.tokens[1][1:-1]) == "a river"


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("sentence\tlabel\na cat\tyes\nb\n", {}, r"a\.tsv: 1 row does not have 2 columns \(line 3\); fix the file"),
        (
            "text\tlabel\na cat\tyes\n",
            {},
            r"line 1: there is no column sentence; the columns are text, label: set task",
        ),
        ("sentence\tclass\na cat\tyes\n", {}, r"line 1: there is no column label; the columns are sentence, class"),
        ("sentence\tlabel\na cat\tyes\nb\tyes\n", {}, r"has only the label yes in label; at least 2 labels are needed"),
        ("", {}, r"a\.tsv contains no rows"),
        ("a\tyes\nb\tno\n", {"header": False, "text": ("0",), "label": "7"}, r"no column 7; the columns are 0, 1"),
        ("sentence\tlabel\tlabel\na\tyes\tno\n", {}, r"line 1: two columns have the name label; rename one"),
        ("sentence\tlabel\n\tyes\n \tno\n", {}, r"a\.tsv: all texts in sentence are empty; set task\.text"),
        (
            "sentence\tlabel\n" + "".join(f"a\t{n}\n" for n in range(50)),
            {},
            r"50 different labels in label for 50 examples",
        ),
        (
            "sentence\tlabel\na\tyes\nb\tno\nc\tmaybe\n",
            {"labels": ("no", "yes")},
            r"a\.tsv, line 4: the label maybe in label is not one of no, yes",
        ),
        (
            "sentence\tlabel\na\tyes\nb\tno\n",
            {"labels": ("no", "yes", "maybe")},
            r"a\.tsv: no row has the label maybe of task\.labels",
        ),
        ("sentence\tlabel\n", {"labels": ("no", "yes")}, r"contains no rows"),
        ("sentence\tlabel\na\t\nb\t\n", {"labels": ("no", "yes")}, r"no row has a label in label"),
        (
            "sentence\tlabel\na\tyes\nb\tno\n",
            {"class_weights": ("maybe=2",)},
            r"task\.class_weights=maybe=2: maybe is not one of the labels no, yes",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(task_config, tmp_path, content, task, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_task(task_config(tmp_path / "a.tsv", **task))


def test_bad_rows_are_skipped_and_named_if_wanted(task_config, tmp_path, caplog):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na cat\tyes\nb\nthe dog\tno\tx\na river\tno\n")
    data = read_task(task_config(tmp_path / "a.tsv", bad_rows="skip"))
    assert len(data.train) == 2
    assert "2 rows do not have 2 columns (lines 3, 4): skipped" in caplog.text


def test_a_missing_file_and_an_unknown_ending_are_named(task_config, tmp_path):
    for path, message in [
        (tmp_path / "missing.tsv", r"missing\.tsv does not exist: set task\.train"),
        (tmp_path / ("x" * 5000), "x does not exist: set task"),
        (tmp_path, "is a folder, a pipe or a device: set task"),
    ]:
        with pytest.raises(UserError, match=message):
            read_task(task_config(path))
    (tmp_path / "a.xml").write_text("x")
    with pytest.raises(UserError, match=r"a\.xml: the file name has none of the known endings"):
        read_task(task_config(tmp_path / "a.xml"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"train": ""}, "train.objective=classification needs task.train"),
        ({"text": ("a", "b", "c")}, "must name one column, or two columns"),
        ({"evaluation": ("a=x", "a=y")}, "there is another set a"),
        ({"evaluation": ("x.tsv",), "test": ("evaluation=y",)}, "there is another set evaluation"),
        ({"evaluation": ("selection=x",)}, "there is another set selection"),
        ({"evaluation": ("a/b=x",)}, "a name may contain letters"),
        ({"evaluation": ("a=",)}, "expected NAME=FILE or FILE"),
        ({"class_weights": ("yes=0",)}, "expected LABEL=WEIGHT"),
        ({"text": ("label",)}, "must be different columns"),
        ({"text": ("a", "a")}, "must be different columns"),
        ({"labels": ("no", "No")}, "a label occurs twice"),
        ({"labels": ("0", "")}, "a label is empty"),
        ({"labels": ("0", " 1")}, "has a space before or after it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(task_config, task, message):
    config = task_config("a.tsv")
    config.task.update(task)
    with pytest.raises(UserError, match=message):
        check_task(config)


def test_labels_of_any_case_are_those_of_the_checkpoint(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tPositive\nb\tNEGATIVE\n")
    config = task_config(tmp_path / "a.tsv")
    assert shared_labels(config, ("negative", "positive")) == ("negative", "positive")
    assert shared_labels(config, ("negative", "neutral", "positive")) == ()
    config.task.labels = ("positive", "negative")
    assert read_task(config).train.columns["labels"].tolist() == [0, 1]


def test_a_row_without_a_label_counts_for_nothing(task_config, tmp_path, caplog):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\nc\t\n")
    assert read_task(task_config(tmp_path / "a.tsv")).train.columns["weights"].tolist() == [1, 1, 0]
    assert "1 of 3 rows have no label and are not learned from" in caplog.text


def test_a_test_set_needs_no_labels_but_an_evaluation_set_does(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\n")
    (tmp_path / "b.tsv").write_text("sentence\na\n")
    data = read_task(task_config(tmp_path / "a.tsv", test=(f"unseen={tmp_path / 'b.tsv'}",)))
    assert data.sets["unseen"].columns["weights"].tolist() == [0]
    with pytest.raises(UserError, match=r"b\.tsv, line 1: there is no column label; the columns are sentence"):
        read_task(task_config(tmp_path / "a.tsv", evaluation=(str(tmp_path / "b.tsv"),)))


def test_class_weights(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\nc\tno\nd\tno\n")
    weights = read_task(task_config(tmp_path / "a.tsv", class_weights=("balanced",))).train.columns["weights"]
    np.testing.assert_allclose(weights, [2, 2 / 3, 2 / 3, 2 / 3])
    weights = read_task(task_config(tmp_path / "a.tsv", class_weights=("YES=5",))).train.columns["weights"]
    np.testing.assert_allclose(weights, [5, 1, 1, 1])


def test_numeric_labels_are_classes_in_order_or_numbers_as_the_objective_says(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\t10\nb\t9\nc\t-1.5\n")
    assert read_task(task_config(tmp_path / "a.tsv")).labels == ("-1.5", "9", "10")
    data = read_task(task_config(tmp_path / "a.tsv", "regression"))
    assert data.labels == ()
    assert data.train.columns["labels"].tolist() == [10, 9, -1.5]
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\t10\nb\tnan\n")
    with pytest.raises(UserError, match=r"a\.tsv, line 3: the label nan in label is not a number"):
        read_task(task_config(tmp_path / "a.tsv", "regression"))


def test_several_labels(task_config, tmp_path):
    rows = [{"sentence": "a", "label": ["x", "y"]}, {"sentence": "b", "label": []}, {"sentence": "c", "label": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_task(task_config(tmp_path / "a.jsonl", "multi_label"))
    assert data.labels == ("x", "y")
    assert data.train.columns["labels"].tolist() == [[1, 1], [0, 0], [0, 1]]
    assert data.train.columns["weights"].tolist() == [1, 1, 1]


def test_a_part_of_the_training_set_selects_and_equal_texts_stay_together(task_config, tmp_path):
    lines = [f"text {number % 100}\t{number % 2}" for number in range(400)]
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    config = task_config(tmp_path / "a.tsv")
    config.evaluation.select = "split"
    data = read_task(config)
    assert data.selects == "selection"
    kept = {row.values["sentence"] for row in data.sets["selection"].rows}
    assert 3 <= len(kept) <= 20
    assert not kept & {row.values["sentence"] for row in data.train.rows}
    assert len(data.train) + len(data.sets["selection"]) == 400
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
    with pytest.raises(UserError, match=r"has too few rows \(2\) to keep a part"):
        read_task(config)
    config.evaluation.select = "dev"
    with pytest.raises(UserError, match=r"evaluation\.select=dev is not an evaluation set; it can be split, none"):
        read_task(config)


def test_the_fingerprint_follows_the_content(task_config, tmp_path):
    prints = set()
    for number, text in enumerate(["a cat", "a cat", "a dog"]):
        path = tmp_path / f"{number}.tsv"
        path.write_text(f"sentence\tlabel\n{text}\tyes\nb\tno\n")
        prints.add(read_task(task_config(path)).fingerprint)
    assert len(prints) == 2


def test_text_that_the_vocabulary_cannot_spell_is_refused_or_reported(task_config, tmp_path, caplog):
    train, russian = tmp_path / "train.tsv", tmp_path / "ru.tsv"
    russian.write_text("sentence\tlabel\nПривет мир\t0\nСтолица\t1\n")
    with pytest.raises(UserError, match=r"ru\.tsv: the vocabulary has no token for the words of this text"):
        read_task(task_config(russian))
    train.write_text("sentence\tlabel\nПривет the cat\t0\nthe dog sees\t1\n")
    read_task(task_config(train))
    assert "train.tsv: " in caplog.text
    assert "tokens are [UNK]" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentence": ["a"], "label": "no"}, r"a\.jsonl, line 3: sentence=\['a'\]: expected text; set task\.text"),
        ({"sentence": 3, "label": "no"}, r"line 3: sentence=3: expected text"),
        ({"label": "no"}, r"line 3: there is no column sentence; the columns are label: set task\.text"),
        ({"sentence": "a", "label": ["no"]}, r"line 3: label=\['no'\]: expected text, a whole number, true or false"),
        ({"sentence": "a", "label": 1.0}, r"line 3: label=1\.0: expected text, a whole number"),
        ({"sentence": "a", "label": "\ud800"}, r"line 3: label='.ud800' contains half of a surrogate pair"),
    ],
)
def test_values_of_json_that_are_no_text_and_no_label_are_refused(task_config, tmp_path, record, message):
    records = [{"sentence": "a", "label": "yes"}, {"sentence": "b", "label": "no"}, record]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=message):
        read_task(task_config(tmp_path / "a.jsonl"))


def test_labels_of_json_are_spelled_as_in_the_file(task_config, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sentence": "a", "label": true}\n{"sentence": "b", "label": false}\n')
    assert read_task(task_config(tmp_path / "a.jsonl")).labels == ("false", "true")


def test_an_evaluation_set_called_train_does_not_replace_the_training_examples(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\nc\tno\n")
    (tmp_path / "b.tsv").write_text("sentence\tlabel\nd\tyes\n")
    data = read_task(task_config(tmp_path / "a.tsv", evaluation=(f"train={tmp_path / 'b.tsv'}",)))
    assert len(data.train) == 3
    assert {name: len(examples) for name, examples in data.sets.items()} == {"train": 1}


def test_an_evaluation_set_in_which_no_row_has_a_label_is_refused(task_config, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\n")
    (tmp_path / "b.tsv").write_text("sentence\tlabel\nd\t\n")
    with pytest.raises(UserError, match=r"b\.tsv: no example has a label in label; set task\.label"):
        read_task(task_config(tmp_path / "a.tsv", evaluation=(str(tmp_path / "b.tsv"),)))


def test_a_message_quotes_at_most_a_part_of_long_names(task_config, tmp_path):
    names = [f"column{number}" * 30 for number in range(1000)]
    (tmp_path / "a.tsv").write_text("\t".join(names) + "\n")
    with pytest.raises(UserError, match=r"and 980 more: set task\.text") as caught:
        read_task(task_config(tmp_path / "a.tsv"))
    assert len(str(caught.value)) < 2000


def test_format_and_encoding_are_those_of_section_data(task_config, tmp_path):
    (tmp_path / "a.data").write_bytes("sentence\tlabel\nthe cat\tété\nthe dog\tno\n".encode("latin-1"))
    config = task_config(tmp_path / "a.data")
    with pytest.raises(UserError, match=r"a\.data: the file name has none of the known endings"):
        read_task(config)
    config.data.format = "tsv"
    with pytest.raises(UserError, match=r"a\.data, line 2, .*set data\.encoding"):
        read_task(config)
    config.data.encoding = "latin-1"
    assert read_task(config).labels == ("no", "été")
    config.data.format = "text"
    with pytest.raises(UserError, match=r"a\.data has the format text, but examples are read from tsv, csv, jsonl"):
        read_task(config)
