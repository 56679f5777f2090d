"""Contexts with several texts to choose from."""

import pytest

from jaxlm.data.tasks.table import read_task
from jaxlm.errors import UserError

CHOICES = {"objective": "choice", "text": ("context",), "choices": ("first", "second", "third")}
HEADER = "context\tfirst\tsecond\tthird\tlabel"


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_example_is_a_pair_for_each_choice(task_config, tmp_path):
    lines = [HEADER, "the cat\ta river\tthe house\t\t1", "my brother\ta\tb\tc\tfirst", "a\tb\tc\td\t"]
    train = read_task(task_config(write(tmp_path / "a.tsv", *lines), **CHOICES)).train
    assert train.example.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert train.columns["role"].tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    assert train.columns["labels"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert train.columns["weights"].tolist() == [1] * 5 + [0] * 3
    assert len(train) == 3


def test_a_second_column_of_text_begins_each_choice(task_config, tmp_path):
    file = write(tmp_path / "a.tsv", "context\tstart\tfirst\tsecond\tlabel", "the cat\tthe captain\tsees\tpaints\t0")
    data = read_task(task_config(file, **CHOICES | {"text": ("context", "start"), "choices": ("first", "second")}))
    expected = data.tokenizer.encode("the captain paints").ids.tolist()
    second = data.train.tokens[1][data.train.token_types[1] == 1]
    assert second[:-1].tolist() == expected


def test_numbers_are_those_of_the_choices_in_a_file_without_a_header(task_config, tmp_path):
    task = CHOICES | {"text": ("0",), "choices": ("1", "2"), "label": "3", "header": False}
    train = read_task(task_config(write(tmp_path / "a.tsv", "the cat\ta\tb\t1", "a\tb\tc\t0"), **task)).train
    assert train.columns["labels"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("lines", "task", "message"),
    [
        ([HEADER, "a\tb\tc\td\t3"], {}, r"a\.tsv, line 2: the label 3 in label is neither a number from 0 to 2"),
        ([HEADER, "a\tb\t\t\t0"], {}, r"a\.tsv, line 2: fewer than two of first, second, third have a text; fix the"),
        ([HEADER, "a\tb\tc\t\t2"], {}, r"a\.tsv, line 2: third is right, but empty"),
        ([HEADER, "a\tb\tc\td\t1"], {"choices": ("first",)}, r"task\.choices=first: .* needs two or more different"),
        ([HEADER, "a\tb\tc\td\t1"], {"choices": ("first", "context")}, r"context is also in task\.text or task\.label"),
        ([HEADER, "a\tb\tc\td\t1"], {"choices": ("first", "fourth")}, r"no column fourth; .* set task\.choices"),
        ([HEADER, "a\tb\tc\td\t"], {}, r"no row has a label in label"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(task_config, tmp_path, lines, task, message):
    with pytest.raises(UserError, match=message):
        read_task(task_config(write(tmp_path / "a.tsv", *lines), **CHOICES | task))
