"""The labels of a run: none of task.labels may be without an example in the training file."""

import pytest

from jaxlm.data.examples import SPLIT
from jaxlm.data.tasks.table import read_task
from jaxlm.errors import UserError


@pytest.mark.parametrize("objective", ["classification", "multi_label"])
def test_an_empty_class_is_named(task_config, tmp_path, objective):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na cat\tthe\na dog\triver\nthe house\t\n")
    config = task_config(tmp_path / "a.tsv", objective, labels=("river", "cat", "the"))
    with pytest.raises(UserError, match=r"a\.tsv: no row has the label cat of task\.labels; add examples, or remove"):
        read_task(config)


def test_a_class_whose_only_example_selects_stays_a_class_when_the_run_goes_on(task_config, tmp_path):
    def config(rare, labels=()):
        rows = [
            f"the {number}\t{'rare' if number == rare else 'odd' if number % 2 else 'even'}\n" for number in range(40)
        ]
        (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(rows))
        found = task_config(tmp_path / "a.tsv", labels=labels)
        found.evaluation.update(select="split", select_fraction=0.2)
        return found

    kept = read_task(config(rare=-1)).sets[SPLIT].rows[0].values["sentence"]
    rare = int(kept.removeprefix("the "))
    first = read_task(config(rare))
    assert first.labels == ("even", "odd", "rare")
    assert 2 not in first.train.columns["labels"]
    assert read_task(config(rare, first.labels)).fingerprint == first.fingerprint  # the labels that a run has stored
