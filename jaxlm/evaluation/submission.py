"""Predictions on the test sets of a benchmark in the format that its server accepts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.storage import write_text
from jaxlm.text.known_tasks import KNOWN_TASKS
from jaxlm.text.labelled import Row

SCORES = (0.0, 5.0)  # of STS-B: the server rejects others


def submission_file(workdir: Path, task: Any, name: str) -> Path | None:
    """Returns where the predictions on the set `name` are written for the benchmark; None if they are not."""
    known = KNOWN_TASKS.get(task.name)
    if not known or not task.submission or name not in known.submissions:
        return None
    return workdir / "submission" / f"{known.submissions[name]}.tsv"


def write_glue(file: Path, rows: Sequence[Row], predictions: Iterable[Mapping[str, Any]]) -> None:
    """Writes GLUE's format: index and prediction, separated by a tab, under a header. Raises UserError.

    The index is that of the test file (its column index, or id in QQP), or the number of the row.
    """
    lines = ["index\tprediction"]
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        index = row.values.get("index", row.values.get("id", number))
        lines.append(f"{index}\t{_answer(prediction)}")
    file.parent.mkdir(exist_ok=True)
    write_text(file, "\n".join(lines) + "\n")


def _answer(prediction: Mapping[str, Any]) -> str:
    if "value" in prediction:
        return f"{min(max(prediction['value'], SCORES[0]), SCORES[1]):.3f}"
    return str(prediction["label"])
