"""The evaluators of the sets of a task: only a metric that the kind of task has selects."""

import types

import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.evaluation.task_sets import TASKS, task_evaluators


@pytest.mark.parametrize("objective", TASKS)
@pytest.mark.parametrize("metric", ["f2", "eval_loss", "calibrated_loss", "Accuracy", "n"])
def test_a_metric_that_the_task_does_not_have_is_named(tmp_path, objective, metric):
    config = default_config()
    config.train.objective, config.task.metric = objective, metric
    with pytest.raises(UserError, match=rf"task\.metric={metric} is not a metric of train\.objective={objective}; it"):
        task_evaluators(types.SimpleNamespace(config=config), types.SimpleNamespace(sets={}), tmp_path)


def test_the_metric_of_a_loss_selects_the_smallest(tmp_path):
    config = default_config()
    config.train.objective, config.task.metric = "classification", "loss"
    data = types.SimpleNamespace(sets={"dev": None, "test": None}, selects="dev")
    dev, test = task_evaluators(types.SimpleNamespace(config=config), data, tmp_path)
    assert (dev.selects, dev.higher_is_better) == ("loss", False)
    assert not test.selects
