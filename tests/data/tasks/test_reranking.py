"""Queries and passages with their relevance."""

import pytest

from jaxlm.data.tasks.table import read_task
from jaxlm.errors import UserError

PAIRS = {"objective": "reranking", "text": ("query", "passage")}


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_pairs_have_a_relevance(task_config, tmp_path):
    lines = ["query,label,passage", "the cat,1,a river", "the cat,no,the house", "a,TRUE,b", "a,,c"]
    data = read_task(task_config(write(tmp_path / "a.csv", *lines), **PAIRS))
    assert data.train.columns["labels"].tolist() == [1, 0, 1, 0]
    assert data.train.columns["weights"].tolist() == [1, 1, 1, 0]
    assert data.train.token_types[0].tolist()[-1] == 1
    assert data.labels == ()


def test_the_passages_of_a_query_are_on_one_side_of_the_split(task_config, tmp_path):
    rows = [f"the cat {n % 20}\ta river {n}\t{n % 3 % 2}" for n in range(100)]
    config = task_config(write(tmp_path / "a.tsv", "query\tpassage\tlabel", *rows), **PAIRS)
    config.evaluation.select, config.evaluation.select_fraction = "split", 0.3
    data = read_task(config)
    sides = [{row.values["query"] for row in examples.rows} for examples in (data.train, data.sets["selection"])]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("lines", "task", "message"),
    [
        (["query\tpassage\tlabel", "a\tb\t2"], {}, r"a\.tsv, line 2: the label 2 in label is not one of 1, true, yes"),
        (["query\tpassage\tlabel", "a\tb\t1", "c\td\t1"], {}, r"every passage with a label in label has the same one"),
        (["query\tpassage\tlabel", "a\t\t1"], {}, r"a\.tsv: all texts in passage are empty; set task\.text"),
        (["query\tpassage\tlabel", "a\tb\t"], {}, r"no row has a label in label"),
        (["query\tpassage\tlabel", "a\tb\t1"], {"text": ("query",)}, r"train\.objective=reranking needs two columns"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(task_config, tmp_path, lines, task, message):
    with pytest.raises(UserError, match=message):
        read_task(task_config(write(tmp_path / "a.tsv", *lines), **PAIRS | task))
