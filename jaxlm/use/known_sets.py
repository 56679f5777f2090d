"""A fine-tuned model on known tasks by their names: `jaxlm evaluate --tasks=sst2 --data=GLUE`."""

from collections.abc import Sequence
from pathlib import Path

from jaxlm.data.tasks.template import OBJECTIVE as TEMPLATE
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.text.known_tasks import KNOWN_TASKS, KnownTask
from jaxlm.typed import listed
from jaxlm.use.evaluate_task import SETTINGS, evaluate_task
from jaxlm.use.loading import Trained
from jaxlm.use.task_model import for_verb

Sets = dict[str, Metrics]  # by the name of the evaluation set


def folder_of(name: str, data: Path) -> Path:
    """Returns the folder with the evaluation files of a known task: `data`, or one in it with the task's name.

    That name is jaxlm's, or the benchmark's, such as SST-2. Raises UserError if files are missing.
    """
    files = evaluation_files(KNOWN_TASKS[name])
    names = dict.fromkeys((name, *KNOWN_TASKS[name].submissions.values()))
    folders = [data, *(data / inner for inner in names)]
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    there = next((folder for folder in reversed(folders) if folder.is_dir()), data)
    missing = [str(there / file) for file in files if not (there / file).is_file()]
    raise UserError(f"--tasks={name} needs {listed(missing)}; name the folder with --data")


def evaluation_files(known: KnownTask) -> list[str]:
    return [entry.partition("=")[2] for entry in known.evaluation]


def for_task(trained: Trained, name: str) -> Trained:
    """Returns a fine-tuned model as it reads a known task. Raises UserError if it has no head for such a task."""
    known = KNOWN_TASKS[name]
    if known.objective == "reranking" and trained.fine_tuned:
        return for_verb(trained, "rank")
    objective = trained.config.train.objective
    if not trained.fine_tuned or not (objective == known.objective or _by_template(trained, known)):
        was = f"was fine-tuned with train.objective={objective}" if trained.fine_tuned else "was not fine-tuned"
        raise UserError(
            f"{trained.directory} {was}, and {name} needs a model that was fine-tuned with train.objective="
            f"{known.objective}, as `jaxlm train --config=finetune:{name}` does"
        )
    return trained


def evaluate_known(trained: Trained, name: str, folder: Path, rows: int = 0) -> Sets:
    """Returns the metrics of what `for_task` returned on each evaluation set, or on its first `rows`, 0 for all.

    Raises UserError if the model has other labels.
    """
    given = KNOWN_TASKS[name].settings | {"data": str(folder)}
    if _by_template(trained, KNOWN_TASKS[name]):
        del given["text"]  # the template names the columns
    return evaluate_task(trained, overrides_of(given), rows)


def _by_template(trained: Trained, known: KnownTask) -> bool:
    return trained.config.train.objective == TEMPLATE and known.objective == "classification"


def overrides_of(settings: dict[str, object]) -> list[str]:
    """Returns those settings of section `task` that an evaluation reads, as overrides."""

    def text(value: object) -> str:
        return ",".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

    return [f"task.{name}={text(value)}" for name, value in settings.items() if f"task.{name}" in SETTINGS]
