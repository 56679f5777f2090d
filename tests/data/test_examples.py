"""Labelled examples: reading tables, tokenizing, packing into rows, and the rows of each step."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import Phase, default_config
from jaxlm.data.examples import (
    ExampleRows,
    Examples,
    evaluation_batches,
    pack_examples,
    read_examples,
)
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import train_tokenizer
from tests.conftest import sentences

PAD = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    config = default_config()
    config.tokenizer.vocab_size = 80
    train_tokenizer(sentences(300), config.tokenizer, folder).save(folder)
    return folder


def make_config(tokenizer, train, **task):
    config = default_config()
    config.train.objective = "classify"
    config.tokenizer.path = str(tokenizer)
    config.data.sequence_length = 32
    config.task.update(train=str(train), **task)
    return config


def test_examples_that_the_vocabulary_cannot_spell_are_refused_or_reported(tokenizer, tmp_path, caplog):
    train, russian = tmp_path / "train.tsv", tmp_path / "ru.tsv"
    russian.write_text("sentence\tlabel\nПривет мир\t0\nСтолица\t1\n")
    with pytest.raises(UserError, match=r"ru\.tsv: the vocabulary has no token for the words of this text"):
        read_examples(make_config(tokenizer, russian))
    train.write_text("sentence\tlabel\nПривет the cat\t0\nthe dog sees\t1\n")
    read_examples(make_config(tokenizer, train))
    assert "train.tsv: " in caplog.text
    assert "tokens are [UNK]" in caplog.text


def make_examples(sizes, seed=0):
    random = np.random.default_rng(seed)
    tokens = [random.integers(5, 100, size).astype(np.int32) for size in sizes]
    labels = random.integers(0, 3, len(sizes)).astype(np.int32)
    return Examples(tokens, [np.zeros(size, np.int32) for size in sizes], labels, 0)


# Reading


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'sentence\tlabel\na "cat\tyes\nthe dog" here\tno\n'),
        ("a.csv", 'sentence,label\n"a ""cat",yes\n"the dog"" here",no\n'),
        ("a.jsonl", '{"sentence": "a \\"cat", "label": "yes"}\n{"sentence": "the dog\\" here", "label": "no"}\n'),
    ],
)
def test_every_format_gives_the_same_examples(tokenizer, tmp_path, name, content):
    (tmp_path / name).write_text("\ufeff" + content, encoding="utf-8")
    data = read_examples(make_config(tokenizer, tmp_path / name))
    assert data.labels == ("no", "yes")
    assert data.train.labels.tolist() == [1, 0]
    for tokens, text in zip(data.train.tokens, ['a "cat', 'the dog" here'], strict=True):
        assert tokens[1:-1].tolist() == data.tokenizer.encode(text).ids.tolist()
    assert all(tokens[0] == data.tokenizer.begin_id and tokens[-1] == data.tokenizer.end_id
               for tokens in data.train.tokens)  # fmt: skip


def test_columns_are_numbers_in_a_file_without_a_header(tokenizer, tmp_path):
    (tmp_path / "a.tsv").write_text("id1\t0\tthe cat sees\nid2\t1\ta river\n")
    data = read_examples(make_config(tokenizer, tmp_path / "a.tsv", header=False, text=("2",), label="1"))
    assert data.train.labels.tolist() == [0, 1]
    assert data.tokenizer.decode(data.train.tokens[1][1:-1]) == "a river"


def test_pairs_are_cut_at_the_longest_and_keep_their_types(tokenizer, tmp_path):
    long, short = " ".join(sentences(20)), "a river"
    (tmp_path / "a.tsv").write_text(f"x\ty\tlabel\n{long}\t{short}\t0\n{short}\t{short}\t1\n")
    data = read_examples(make_config(tokenizer, tmp_path / "a.tsv", text=("x", "y")))
    assert data.train.truncated == 1
    first, second = data.train.tokens
    assert len(first) == 32
    count = len(data.tokenizer.encode(short).ids)
    assert data.train.token_types[0].tolist() == [0] * (31 - count) + [1] * (count + 1)
    assert (second == data.tokenizer.end_id).sum() == 2


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("sentence\tlabel\na cat\tyes\nb\n", {}, r"a\.tsv, line 3: 1 columns instead of 2"),
        (
            "text\tlabel\na cat\tyes\n",
            {},
            r"a\.tsv, line 1: there is no column sentence; the columns are text, label: set task\.text",
        ),
        ("sentence\tlabel\na cat\tyes\nb\tyes\n", {}, r"has only the label yes in label; at least 2 labels are needed"),
        ("sentence\tlabel\na\tyes\nb\tno\nc\tmaybe\n", {"labels": ("no", "yes")}, r"1 examples have the label maybe"),
        ("sentence\tlabel\n", {"labels": ("no", "yes")}, r"holds no example"),
        ("", {}, r"a\.tsv holds no example"),
        (
            "sentence\tlabel\na\tyes\nb\tno\n",
            {"label": "lable", "labels": ("no", "yes")},
            r"no column lable; .*task\.label",
        ),
        (
            "a\tyes\nb\tno\n",
            {"header": False, "text": ("0",), "label": "7"},
            r"there is no column 7; the columns are 0, 1",
        ),
        ("sentence\tlabel\tlabel\na\tyes\tno\n", {}, r"line 1: two columns have the name label; rename one"),
        ("sentence\tlabel\na\t\nb\t\n", {"labels": ("no", "yes")}, r"a\.tsv: no example has a label in label"),
        ("sentence\tlabel\n\tyes\n \tno\n", {}, r"a\.tsv: all texts in sentence are empty; set task\.text"),
        (
            "sentence\tlabel\n" + "".join(f"a\t{n}\n" for n in range(50)),
            {},
            r"50 different labels in label for 50 examples",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tokenizer, tmp_path, content, task, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_examples(make_config(tokenizer, tmp_path / "a.tsv", **task))


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
def test_values_of_json_that_are_no_text_and_no_label_are_refused(tokenizer, tmp_path, record, message):
    records = [{"sentence": "a", "label": "yes"}, {"sentence": "b", "label": "no"}, record]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=message):
        read_examples(make_config(tokenizer, tmp_path / "a.jsonl"))


def test_labels_of_json_are_spelled_as_in_the_file(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sentence": "a", "label": true}\n{"sentence": "b", "label": false}\n')
    assert read_examples(make_config(tokenizer, tmp_path / "a.jsonl")).labels == ("false", "true")


def test_an_evaluation_file_without_labels_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\n")
    (tmp_path / "dev.tsv").write_text("sentence\tindex\na\t1\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 1: there is no column label; the columns are sentence, index"):
        read_examples(make_config(tokenizer, tmp_path / "a.tsv", evaluation=(str(tmp_path / "dev.tsv"),)))


def test_an_evaluation_set_called_train_does_not_replace_the_training_examples(tokenizer, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\nc\tno\n")
    (tmp_path / "b.tsv").write_text("sentence\tlabel\nd\tyes\n")
    data = read_examples(make_config(tokenizer, tmp_path / "a.tsv", evaluation=(f"train={tmp_path / 'b.tsv'}",)))
    assert len(data.train) == 3
    assert {name: len(examples) for name, examples in data.evaluation.items()} == {"train": 1}


def test_a_message_quotes_at_most_a_part_of_long_names(tokenizer, tmp_path):
    names = [f"column{number}" * 30 for number in range(1000)]
    (tmp_path / "a.tsv").write_text("\t".join(names) + "\n")
    with pytest.raises(UserError, match=r"and 980 more: set task\.text") as caught:
        read_examples(make_config(tokenizer, tmp_path / "a.tsv"))
    assert len(str(caught.value)) < 2000


def test_format_and_encoding_are_those_of_section_data(tokenizer, tmp_path):
    (tmp_path / "a.data").write_bytes("sentence\tlabel\nthe cat\tété\nthe dog\tno\n".encode("latin-1"))
    config = make_config(tokenizer, tmp_path / "a.data")
    with pytest.raises(UserError, match=r"a\.data: the file name has none of the known endings"):
        read_examples(config)
    config.data.format = "tsv"
    with pytest.raises(UserError, match=r"a\.data, line 2, .*set data\.encoding"):
        read_examples(config)
    config.data.encoding = "latin-1"
    assert read_examples(config).labels == ("no", "été")
    config.data.format = "text"
    with pytest.raises(UserError, match=r"a\.data has the format text, but examples are read from tsv, csv, jsonl"):
        read_examples(config)


def test_what_is_no_file_is_named(tokenizer, tmp_path):
    for path, message in [
        (tmp_path / "missing.tsv", r"missing\.tsv does not exist: set task\.train"),
        (tmp_path / ("x" * 5000), "x does not exist: set task"),
        (tmp_path, "is a folder, a pipe or a device: set task"),
    ]:
        with pytest.raises(UserError, match=message):
            read_examples(make_config(tokenizer, path))


def test_an_unlabelled_example_counts_for_nothing(tokenizer, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\tyes\nb\tno\nc\t\n")
    assert read_examples(make_config(tokenizer, tmp_path / "a.tsv")).train.labels.tolist() == [1, 0, -1]


def test_the_fingerprint_follows_the_content(tokenizer, tmp_path):
    prints = set()
    for number, text in enumerate(["a cat", "a cat", "a dog"]):
        path = tmp_path / f"{number}.tsv"
        path.write_text(f"sentence\tlabel\n{text}\tyes\nb\tno\n")
        prints.add(read_examples(make_config(tokenizer, path)).fingerprint)
    assert len(prints) == 2


# Packing


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(2, 32), min_size=1, max_size=60),
    multiple=st.integers(1, 4),
)
def test_packed_rows_hold_every_example_once_and_whole(sizes, multiple):
    examples = make_examples(sizes)
    batch, place = pack_examples(examples, range(len(sizes)), 32, PAD, multiple)
    assert len(batch["tokens"]) % multiple == 0
    assert len({tuple(p) for p in place.tolist()}) == len(sizes)
    for number, (row, segment) in enumerate(place):
        here = batch["segment_ids"][row] == segment + 1
        np.testing.assert_array_equal(batch["tokens"][row][here], examples.tokens[number])
        assert batch["labels"][row, segment] == examples.labels[number]
    assert (batch["segment_ids"] > 0).sum() == sum(sizes)
    assert (batch["labels"] >= 0).sum() == len(sizes)


def test_row_counts_are_few():
    examples = make_examples([32] * 200)
    counts = {len(pack_examples(examples, range(n), 32, PAD, 1)[0]["tokens"]) for n in range(1, 200)}
    assert len(counts) < 30
    assert all(len(pack_examples(examples, range(n), 32, PAD, 1)[0]["tokens"]) <= 1.25 * n + 1 for n in range(1, 200))


# Rows of a step


@pytest.mark.parametrize("batch_size", [3, 8])
def test_every_example_comes_once_an_epoch(batch_size):
    examples = make_examples([5] * 20)
    rows = ExampleRows(examples, [Phase(None, 32, batch_size)], 3, PAD, 1)
    seen = np.concatenate([rows.examples_of_step(step) for step in range(40 // batch_size + 1)])
    assert sorted(seen[:20].tolist()) == sorted(seen[20:40].tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:40].tolist()


def test_a_step_depends_on_the_seed_and_its_number_alone():
    examples = make_examples([5, 9, 12, 30, 4, 17, 8])
    make = lambda seed: ExampleRows(examples, [Phase(None, 32, 4)], seed, PAD, 2)  # noqa: E731
    one, again, other = make(0), make(0), make(1)
    for step in (5, 0, 3):
        jumped = again.batch(step)
        assert all((one.batch(step)[name] == jumped[name]).all() for name in jumped)
    assert any((one.examples_of_step(step) != other.examples_of_step(step)).any() for step in range(3))
    parts = [one.batch(2, first, first + 1) for first in range(one.batch_rows(2))]
    np.testing.assert_array_equal(np.concatenate([part["tokens"] for part in parts]), one.batch(2)["tokens"])


def test_epochs_are_counted_in_examples_over_all_phases():
    rows = ExampleRows(make_examples([5] * 100), [Phase(10, 32, 4), Phase(None, 32, 20)], 0, PAD, 1)
    assert rows.steps_for(2, None) == 10 + 8
    with pytest.raises(UserError, match=r"train\.tokens"):
        rows.steps_for(None, 1e6)


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("parts", [1, 2])
def test_evaluation_has_every_example_once_on_any_number_of_processes(count, parts):
    examples = make_examples(np.random.default_rng(1).integers(2, 33, count).tolist())
    seen = []
    for part in range(parts):
        numbers = []
        for batch, chosen, place in evaluation_batches(examples, 32, 4, PAD, (part,), parts):
            assert len(batch["tokens"]) % (4 // parts) == 0
            numbers += chosen.tolist()
            assert place.shape == (len(chosen), 2)
        seen.append(numbers)
    assert all(numbers == list(range(count)) for numbers in seen)


def test_columns_are_those_of_the_batch(tokenizer, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na cat\tyes\nb\tno\n")
    config = make_config(tokenizer, tmp_path / "a.tsv")
    data = read_examples(config)
    rows = data.rows(config, [Phase(None, 32, 2)], 0, 1)
    batch = rows.batch(0)
    assert set(batch) == set(rows.columns)
    assert all(batch[name].dtype == dtype for name, dtype in rows.columns.items())
    assert json.dumps(data.facts.labels) == '["no", "yes"]'
