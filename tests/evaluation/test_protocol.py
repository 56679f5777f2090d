"""What results.json says about how its figures came about."""

from jaxlm.config import load_config
from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.evaluation.protocol import describe_protocol

SETTINGS = ["init_from=runs/mnli", "train.seed=2", "train.data_seed=5", "train.batch_size=32"]


def evaluator(name):
    return Evaluator(name, 10, lambda *_: {}, lambda *_: "", selects="mcc", higher_is_better=True)


def test_a_selected_checkpoint_is_described():
    config = load_config("finetune:rte:mosaicbert", [*SETTINGS, "evaluation.patience=3"])
    protocol = describe_protocol(config, evaluator("selection"), (30, 0.5), 50, 20.0)
    assert protocol["intermediate_task"] == "mnli"
    assert protocol["seeds"] == {"init": 2, "data": 5, "masks": 2}
    assert (protocol["step"], protocol["epoch"], protocol["last_step"], protocol["epochs"]) == (30, 1.5, 50, 2.5)
    assert protocol["selected_by"] == "highest mcc on selection"
    assert protocol["selection"] == {
        "set": "selection", "metric": "mcc", "direction": "highest", "value": 0.5, "fraction_of_training_set": 0.1,
        "patience": 3,
    }  # fmt: skip
    other = describe_protocol(config, evaluator("dev"), (30, 0.5), 50, 20.0)
    assert other["selection"]["fraction_of_training_set"] is None


def test_without_selection_the_last_step_is_reported():
    protocol = describe_protocol(load_config("finetune:rte", SETTINGS), None, None, 50, 20.0)
    assert (protocol["step"], protocol["epoch"]) == (50, 2.5)
    assert protocol["selected_by"] is None
    assert protocol["selection"] is None
    assert protocol["intermediate_task"] is None


def test_the_protocol_of_a_template_has_what_the_model_was_asked():
    config = load_config("finetune:rte", SETTINGS)
    assert "template" not in describe_protocol(config, None, None, 50, 20.0)
    config.train.objective = "template"
    config.task.update(template="{a}? [MASK], {b}", labels=("no", "yes"), label_words=("no=No/Never", "yes=Yes"))
    protocol = describe_protocol(config, None, None, 50, 20.0)
    assert protocol["template"] == "{a}? [MASK], {b}"
    assert protocol["label_words"] == {"no": ["No", "Never"], "yes": ["Yes"]}
    assert protocol["softmax"] == "labels"
