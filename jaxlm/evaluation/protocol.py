"""How the figures of a run on labelled examples came about: what results.json says beside them."""

from typing import Any

from jaxlm.data.examples import SPLIT
from jaxlm.data.tasks.template import words_of_labels
from jaxlm.evaluation.evaluator import Evaluator


def describe_protocol(
    config: Any, selects: Evaluator | None, best: tuple[int, float] | None, last_step: int, updates_per_epoch: float
) -> dict[str, Any]:
    """Returns the protocol of a run as JSON values.

    `selects` is the evaluator of the set that selects a checkpoint and `best` the step and the metric of the best one;
    None if the parameters after `last_step` are reported.
    """
    train, step = config.train, best[0] if best else last_step
    return {
        "task": config.task.name,
        "objective": train.objective,
        **_template(config),
        "init_from": config.model.init_from,
        "intermediate_task": config.task.intermediate or None,
        "reinitialized_layers": config.model.reinitialize_layers,
        "seed": train.seed,
        "seeds": {
            "init": _first(train.init_seed, train.seed), "data": _first(train.data_seed, train.seed),
            "masks": _first(train.mask_seed, train.seed),
        },
        "batch_size": train.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "step": step,
        "epoch": round(step / updates_per_epoch, 3),
        "last_step": last_step,
        "epochs": round(last_step / updates_per_epoch, 3),
        **_selection(config, selects, best),
    }  # fmt: skip


def _template(config: Any) -> dict[str, Any]:
    """Returns what the model was asked, if examples were templates."""
    if config.train.objective != "template":
        return {}
    task = config.task
    words = {label: list(words) for label, words in words_of_labels(task, task.labels).items()}
    return {"template": task.template, "label_words": words, "softmax": task.softmax}


def _selection(config: Any, selects: Evaluator | None, best: tuple[int, float] | None) -> dict[str, Any]:
    if selects is None or best is None:
        return {"selected_by": None, "selection": None}
    extreme = "highest" if selects.higher_is_better else "lowest"
    selection = {"set": selects.name, "metric": selects.selects, "direction": extreme, "value": best[1],
                 "fraction_of_training_set": config.evaluation.select_fraction if selects.name == SPLIT else None,
                 "patience": config.evaluation.patience}  # fmt: skip
    return {"selected_by": f"{extreme} {selects.criterion}", "value": best[1], "selection": selection}


def _first(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
