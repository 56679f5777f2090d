"""Calibration: how far predicted probabilities can be believed, and a temperature that corrects them.

A temperature divides the logits before they become probabilities (arXiv 1706.04599). It is fitted at the end of a run,
on the set that selects the best checkpoint, and changes no answer. calibration.json in the work directory holds it.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.runtime.json_output import as_json
from jaxlm.storage import read_json, write_text

BINS = 15  # of equal width, of the probability of the answer
COVERAGE = 0.8  # fraction of the answers, the most probable ones
AT_COVERAGE = f"accuracy_at_{COVERAGE:g}_coverage"
LIMITS = (0.05, 20.0)  # of the temperature
FILE = "calibration.json"
PROTOCOL = {
    "ece": f"expected calibration error: {BINS} bins of equal width, by the probability of the answer",
    "brier": "sum over the classes of (probability - truth)^2, mean over the examples; several labels: mean over both",
    AT_COVERAGE: f"accuracy of the {COVERAGE:.0%} of the answers with the highest probabilities",
}


def calibration_metrics(confidence: np.ndarray, correct: np.ndarray) -> Metrics:
    """Returns the expected calibration error (arXiv 1706.04599) and the accuracy of the most confident answers.

    confidence float [n] are the probabilities of the answers, correct bool [n]. NaN without answers. Among equal
    confidences at the edge of the coverage, each counts in part, so that the order of the examples does not matter.
    """
    count = len(confidence)
    if not count:
        return {"ece": math.nan, AT_COVERAGE: math.nan}
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, correct - confidence, minlength=BINS)
    kept = max(1, math.ceil(COVERAGE * count - 1e-9))
    edge = np.sort(confidence)[::-1][kept - 1]
    above, level = confidence > edge, confidence == edge
    right = correct[above].sum() + correct[level].mean() * (kept - above.sum())
    return {"ece": float(np.abs(gaps).sum() / count), AT_COVERAGE: float(right / kept)}


def fit_temperature(loss: Callable[[np.ndarray], float], logits: np.ndarray) -> dict[str, float]:
    """Returns the temperature at which the loss of the logits, float64 [n, C], is lowest, and both losses.

    `loss` is a mean of negative log likelihoods. The temperature is 1 where no finite one is best: if every answer is
    right, if logits are constant, or without examples.
    """
    from scipy.optimize import minimize_scalar

    count = len(logits)
    if not count:
        return {"temperature": 1.0, "n": 0}
    before = loss(logits)
    found = minimize_scalar(
        lambda x: loss(logits / math.exp(x)), bounds=[math.log(one) for one in LIMITS], method="bounded",
        options={"xatol": 1e-7},
    )  # fmt: skip
    if not found.fun < min(before, *(loss(logits / limit) for limit in LIMITS)):
        return {"temperature": 1.0, "n": count, "loss": before, "calibrated_loss": before}
    return {"temperature": math.exp(found.x), "n": count, "loss": before, "calibrated_loss": float(found.fun)}


def describe_calibration(name: str, values: Mapping[str, Any]) -> str:
    """Returns what was fitted on the set `name` as a line."""
    if "null_threshold" in values:
        return f"null threshold {values['null_threshold']:.3f}, fitted on {name}; n = {values['n']:,}"
    if values["temperature"] == 1:
        return f"temperature: none is better than 1 on {name}; n = {values['n']:,}"
    return (
        f"temperature {values['temperature']:.3f}, fitted on {name} (n = {values['n']:,}): the loss there is"
        f" {values['calibrated_loss']:.3f} instead of {values['loss']:.3f} nats"
    )


def write_calibration(workdir: Path, step: int, name: str, values: Mapping[str, Any]) -> None:
    """Writes what was fitted on the set `name` for the checkpoint of `step`. Raises UserError.

    If nothing was, removes a file that the same run wrote before, with another setting.
    """
    if not values:
        (workdir / FILE).unlink(missing_ok=True)
        return
    protocol = {"protocol": PROTOCOL} if "temperature" in values else {}
    content = {"step": step, "fitted_on": name, **values, **protocol}
    write_text(workdir / FILE, json.dumps(as_json(content), indent=2, ensure_ascii=False) + "\n")


def read_calibration(workdir: Path, step: int) -> dict[str, Any]:
    """Returns what was fitted for the checkpoint of `step`; {} if nothing was. Raises UserError for a damaged file."""
    path = workdir / FILE
    if not path.is_file():
        return {}
    values = read_json(path, remedy=f"remove it, or run `jaxlm train --workdir={workdir}` again, which writes it")
    for name, low in (("temperature", 0.0), ("null_threshold", -math.inf)):
        value = values.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < math.inf:
            raise UserError(f"{path}: {name}={value} is not a number above {low:g}; remove the file")
    return values if values.get("step") == step else {}
