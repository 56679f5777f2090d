"""The kinds of tasks by the objective that trains them, and the data of a run on labelled files."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import phases_of
from jaxlm.data.augmentation import check_augmentation
from jaxlm.data.examples import (
    SPLIT,
    Examples,
    check_not_empty,
    fingerprint,
    split_by_hash,
    warn_of_truncation,
)
from jaxlm.data.task_data import TaskData
from jaxlm.data.tasks.choice import CHOICE
from jaxlm.data.tasks.kind import TaskKind
from jaxlm.data.tasks.known import check_known, check_submission, path_of, read_test, test_entries
from jaxlm.data.tasks.reranking import RERANKING
from jaxlm.data.tasks.retrieval import EMBEDDING
from jaxlm.data.tasks.sequences import CLASSIFICATION, MULTI_LABEL, REGRESSION
from jaxlm.data.tasks.spans import SPANS
from jaxlm.data.tasks.tagging import TAGGING
from jaxlm.data.tasks.template import OBJECTIVE as TEMPLATES
from jaxlm.data.tasks.template import TEMPLATE, check_template, label_tokens
from jaxlm.data.templates import parse_template
from jaxlm.data.text_encoder import TextEncoder, separators_of_pairs
from jaxlm.data.unknown import check_spelling, spelling_of_ids
from jaxlm.errors import UserError
from jaxlm.text.labelled import Row
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer

KINDS: dict[str, TaskKind] = {
    "classification": CLASSIFICATION,
    "multi_label": MULTI_LABEL,
    "regression": REGRESSION,
    "tagging": TAGGING,
    "embedding": EMBEDDING,
    "reranking": RERANKING,
    "choice": CHOICE,
    "span": SPANS,
    "template": TEMPLATE,
}
_TRAIN = ""  # the name of the training examples among the sets, whose names are not empty
_log = logging.getLogger("jaxlm")


def check_task(config: Any) -> None:
    """Raises UserError for settings of section `task` that do not fit, before any file is read."""
    check_settings(config)
    check_known(config)


def check_settings(config: Any, training: bool = True) -> None:
    """Raises UserError for settings of section `task` that do not fit, without a look at the files of a known task.

    Only training needs task.train.
    """
    task = config.task
    check_template(config)
    if training and not task.train:
        raise UserError(f"train.objective={config.train.objective} needs task.train, a file of labelled examples")
    check_submission(config)
    if config.train.objective != TEMPLATES and (len(task.text) not in (1, 2) or not all(task.text)):
        raise UserError(f"task.text={','.join(task.text)}: must name one column, or two columns separated by a comma")
    if len({*task.text, task.label}) <= len(task.text):
        raise UserError(f"task.text={','.join(task.text)} and task.label={task.label}: must be different columns")
    if len({label.lower() for label in task.labels}) < len(task.labels):
        raise UserError(f"task.labels={','.join(task.labels)}: a label occurs twice")
    if not all(label and label == label.strip() for label in task.labels):
        raise UserError(f"task.labels={','.join(task.labels)}: a label is empty, or has a space before or after it")
    taken = {_TRAIN, SPLIT}
    for setting in ("evaluation", "test"):
        for entry in test_entries(task) if setting == "test" else task[setting]:
            given, separator, path = entry.partition("=")
            name = given if separator else setting
            if not name or not (path or not separator):
                raise UserError(f"task.{setting}={entry}: expected NAME=FILE or FILE")
            if not name.replace("-", "").replace("_", "").isalnum():
                raise UserError(f"task.{setting}={entry}: a name may contain letters, digits, - and _")
            if name in taken:
                raise UserError(f"task.{setting}={entry}: there is another set {name}; name each file, as NAME=FILE")
            taken.add(name)
    for entry in task.class_weights if task.class_weights != ("balanced",) else ():
        try:
            fits = float(entry.rpartition("=")[2]) > 0 and "=" in entry
        except ValueError:
            fits = False
        if not fits:
            raise UserError(f"task.class_weights={entry}: expected LABEL=WEIGHT with a weight above 0, or balanced")
    if len({phase.sequence_length for phase in phases_of(config)}) > 1:
        raise UserError("train.phases: sequence_length cannot change in fine-tuning; set data.sequence_length")
    check_augmentation(config)


def task_files(task: Any, name: str) -> dict[str, Path]:
    """Returns the files of task.evaluation or task.test by the name of their set; a bare FILE is named `name`."""
    found = {}
    for entry in test_entries(task) if name == "test" else task[name]:
        given, separator, path = entry.partition("=")
        found[given if separator else name] = path_of(task, path if separator else entry)
    return found


class TaskRows(NamedTuple):
    """The rows of the files of section `task`."""

    train: list[Row]
    sets: dict[str, list[Row]]  # by name: evaluation and test sets, and the part of the training set that selects
    labels: tuple[str, ...]  # names of the outputs
    selects: str  # the set that selects; "" if none does


def read_rows(config: Any) -> TaskRows:
    """Returns the rows that a run trains on, selects by and reports on. Raises UserError."""
    task, kind = config.task, KINDS[config.train.objective]
    paths = {_TRAIN: path_of(task, task.train)}
    paths |= task_files(task, "evaluation") | (tests := task_files(task, "test"))
    rows = {
        name: read_test(kind, path, config) if name in tests else kind.read(path, setting, config, labelled=True)
        for name, path in paths.items()
        if (setting := "task.evaluation" if name else "task.train")
    }
    labels = kind.labels(rows[_TRAIN], task)  # before the split: the part that selects may have a rare one to itself
    selects = config.evaluation.select
    if selects == "split":
        identities = [kind.identity(row, task) for row in rows[_TRAIN]]
        rows[_TRAIN], rows[SPLIT] = split_by_hash(rows[_TRAIN], identities, config.evaluation.select_fraction)
        check_not_empty(rows[_TRAIN], rows[SPLIT], task.train)
        selects = SPLIT
    elif selects != "none" and selects not in rows.keys() - {_TRAIN} - tests.keys():
        names = ", ".join([*task_files(task, "evaluation"), "split", "none"])
        raise UserError(f"evaluation.select={selects} is not an evaluation set; it can be {names}")
    return TaskRows(rows.pop(_TRAIN), rows, labels, "" if selects == "none" else selects)


def read_task(config: Any) -> TaskData:
    """Returns the examples of section `task`, tokenized. Raises UserError that names the file and the row at fault."""
    task, kind = config.task, KINDS[config.train.objective]
    tokenizer = _tokenizer(config)
    if config.train.objective == TEMPLATES:
        parse_template(task.template).before_mask(tokenizer)
    train_rows, set_rows, labels, selects = read_rows(config)
    words = label_tokens(config, labels, tokenizer)
    rows = {_TRAIN: train_rows} | set_rows
    tests = task_files(task, "test")
    paths = {_TRAIN: path_of(task, task.train)} | task_files(task, "evaluation") | tests
    encoder = encoder_for(config, tokenizer)
    sets = {name: kind.encode(found, labels, encoder, task) for name, found in rows.items()}
    for name, examples in sets.items():
        warn_of_truncation(name or "task.train", examples, encoder.longest)
        if name and name not in tests and not (examples.columns.get("weights", np.ones(1)) > 0).any():
            raise UserError(f"{paths.get(name, name)}: no example has a label in {task.label}; set task.label")
    spellings = {name: spelling_of_ids(np.concatenate(found.tokens), tokenizer) for name, found in sets.items()}
    check_spelling({str(paths.get(name, name)): spelling for name, spelling in spellings.items()}, tokenizer)
    train = _labelled(sets.pop(_TRAIN), task)
    _check_labels([train, *(sets[name] for name in sets if name == SPLIT)], labels, task)
    content = fingerprint(sets | {_TRAIN: train}, labels, encoder.longest, tokenizer.fingerprint)
    directory = paths[_TRAIN].parent.absolute()
    return TaskData(directory, content, tokenizer, train, sets, selects, labels, tokenizer.pad_id, words)


def shared_labels(config: Any, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the labels of a trained model, in its order and spelling, if they are those of the training file.

    Upper and lower case are equal. Otherwise returns (): the model needs a new head.
    """
    task, kind = config.task, KINDS[config.train.objective]
    found = kind.labels(kind.read(path_of(task, task.train), "task.train", config, labelled=True), task)
    return labels if {name.lower() for name in found} == {name.lower() for name in labels} else ()


def encoder_for(config: Any, tokenizer: Tokenizer) -> TextEncoder:
    """Returns the encoder of texts for a model: pairs look as the family of the model separates them."""
    longest = max(phase.sequence_length for phase in phases_of(config))
    separators = separators_of_pairs(config.model.position_offset)
    return TextEncoder(tokenizer, longest, config.task.truncation, separators)


def _tokenizer(config: Any) -> Tokenizer:
    if not config.tokenizer.path:
        raise UserError(
            f"train.objective={config.train.objective} needs a trained encoder: set init_from to a work directory or a "
            "Hugging Face directory, or tokenizer.path to a tokenizer"
        )
    return load_tokenizer(config.tokenizer.path, config.tokenizer.words)


def _labelled(examples: Examples, task: Any) -> Examples:
    """Returns the training examples, after a warning if some have no label, which then count for nothing."""
    weights = examples.columns.get("weights", np.ones(len(examples.tokens)))
    without = sum(not weights[first:end].any() for first, end in itertools.pairwise(examples.first.tolist()))
    if without == len(examples):
        raise UserError(f"{task.train}: no row has a label in {task.label}; set task.label to the column of the labels")
    if without:
        _log.warning("%s: %s of %s rows have no label and are not learned from", task.train, f"{without:,}",
                     f"{len(examples):,}")  # fmt: skip
    return examples


def _check_labels(parts: Sequence[Examples], labels: tuple[str, ...], task: Any) -> None:
    """Raises UserError if a label of task.labels has no example in any part of the training file."""
    if not task.labels or "labels" not in parts[0].columns:
        return
    used = set[int]()
    for part in parts:
        found = part.columns["labels"][part.columns["weights"] > 0]
        used |= {*np.flatnonzero(found.any(0)).tolist()} if found.ndim == 2 else {*np.unique(found).tolist()}
    if empty := [label for number, label in enumerate(labels) if number not in used]:
        raise UserError(
            f"{task.train}: no row has the label {', '.join(empty[:5])} of task.labels; add examples, or remove it"
        )
