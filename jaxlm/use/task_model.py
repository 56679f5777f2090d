"""A fine-tuned model as it is used: rows of text in, the predictions of its task out.

Encoding, packing and outputs are those of the run (data/tasks/, data/example_rows.py, evaluation/), so that the
predictions for the rows of an evaluation set are those that the run wrote.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.config import config_from_dict, config_to_dict
from jaxlm.data.examples import Examples, warn_of_truncation
from jaxlm.data.facts import facts_of
from jaxlm.data.tasks.table import KINDS, encoder_for
from jaxlm.data.tasks.template import label_tokens
from jaxlm.data.unknown import check_spelling, spelling_of_ids
from jaxlm.errors import NotFinite, UserError
from jaxlm.evaluation.calibration import read_calibration
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.task_evaluation import Outputs
from jaxlm.evaluation.task_sets import evaluation_of, predicted_batches
from jaxlm.huggingface.task_heads import one_output
from jaxlm.runtime import sharding
from jaxlm.runtime.compiling import jit
from jaxlm.text.labelled import Row
from jaxlm.typed import counted
from jaxlm.use.assembly import assemble_trained
from jaxlm.use.loading import TEXT_COLUMNS, Trained

VERBS = {  # by train.objective
    "classification": "classify", "multi_label": "classify", "regression": "classify", "tagging": "tag",
    "span": "answer", "reranking": "rank", "template": "classify",
}  # fmt: skip
RERANKED = ("query", "passage")  # columns that a Hugging Face model reads as a reranker


# Remedies that only a run accepts, after or between those that remain.
_OF_TRAINING = re.compile(
    r",? raise data\.sequence_length, or set task\.truncation=longest_first|, or raise data\.sequence_length"
    r"|, or set task\.tags or task\.labels| or task\.labels\b"
)


@contextlib.contextmanager
def _without_settings_of_training() -> Iterator[None]:
    """Removes from errors the remedies that a trained model does not accept, such as task.labels."""
    try:
        yield
    except UserError as error:
        raise UserError(_OF_TRAINING.sub("", str(error))) from error


class TaskModel:
    """Predicts examples with the head that a run trained.

    `config` is that of the run, which may be changed before `encode`: its section `task` says how rows are read.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained, self.objective = trained, trained.config.train.objective
        self.config = config_from_dict(config_to_dict(trained.config), "config")
        self.kind, self.evaluation = KINDS[self.objective], evaluation_of(trained.config)
        fitted = read_calibration(trained.directory, trained.step)
        if fitted and hasattr(self.evaluation, "fitted"):
            self.evaluation = self.evaluation.fitted(fitted)
        self.labels = tuple(self.config.task.labels)
        self.encoder = encoder_for(self.config, trained.tokenizer)
        self.compute_dtype = trained.task_dtype
        words = label_tokens(self.config, self.labels, trained.tokenizer)
        facts = facts_of(trained.tokenizer, trained.counts, self.labels, words)
        config = config_from_dict(config_to_dict(trained.config), "config")
        self._assembly = assemble_trained(trained, config, facts, self.objective, self.compute_dtype)
        head = {} if trained.task_head is None else {"head": trained.task_head}
        self.params = {"encoder": trained.params["encoder"]} | head
        self._params = jax.device_put(self.params, self._assembly.state_shardings["params"])

    def encode(self, rows: Sequence[Row], name: str) -> Examples:
        """Returns the examples of rows, and warns of what is truncated or cannot be spelled; `name` is for messages."""
        with _without_settings_of_training():
            examples = self.kind.encode(rows, self.labels, self.encoder, self.config.task)
        warn_of_truncation(name, examples, self.encoder.longest)
        tokenizer = self.trained.tokenizer
        if examples.tokens:
            check_spelling({name: spelling_of_ids(np.concatenate(examples.tokens), tokenizer)}, tokenizer)
        return examples

    def batches(self, examples: Examples, done: int = 0) -> Iterator[Outputs]:
        """Yields the outputs of the segments of examples in order, batch after batch, after the first `done` batches.

        Raises UserError if one is NaN.
        """
        found = predicted_batches(
            self._outputs_of, self._params, examples, self._assembly, self.evaluation.of_tokens,
            self.trained.tokenizer.pad_id, done,
        )  # fmt: skip
        for outputs in found:
            if any(np.isnan(array).any() for arrays in outputs.values() for array in arrays):
                raise NotFinite(f"a prediction of {self.trained.directory}")
            yield outputs

    def outputs(self, examples: Examples) -> Outputs:
        """Returns the outputs of all segments of examples."""
        return joined_outputs(self.batches(examples))

    def predictions(self, outputs: Outputs, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields what is predicted for each example, as in the files predictions/SET.jsonl of a run."""
        return self.evaluation.predictions(outputs, examples, self.labels, self.config.task)

    def predict(self, rows: Sequence[Row], name: str) -> list[dict[str, Any]]:
        """Returns what is predicted for each row."""
        if not rows:
            return []
        examples = self.encode(rows, name)
        return list(self.predictions(self.outputs(examples), examples))

    def measure(self, outputs: Outputs, examples: Examples) -> Metrics:
        """Returns the metrics of the task over the examples with labels."""
        return self.evaluation.measure(outputs, examples, self.labels, self.config.task)

    def read_columns_of(self, rows: Sequence[Row]) -> None:
        """Sets task.text to the texts that rows have, if the model may read one text or two. Raises UserError."""
        if not self.trained.reads_pairs_too or self.objective == "reranking" or not rows:
            return
        self.config.task.text = tuple(rows[0].values)
        for row in rows:
            if tuple(row.values) != self.config.task.text:
                expected = counted(len(self.config.task.text), "text", "texts")
                raise UserError(f"{row.place}: expected {expected}, as in {rows[0].place}; give all the same number")

    @functools.cached_property
    def _outputs_of(self) -> Callable:
        function = functools.partial(self.evaluation.outputs, self._assembly.objectives[0])
        return jit(function, out_shardings=sharding.replicated(self._assembly.mesh))


def joined_outputs(batches: Iterator[Outputs]) -> Outputs:
    """Returns the outputs of batches as one."""
    found: dict[str, list[np.ndarray]] = {}
    for outputs in batches:
        for name, arrays in outputs.items():
            found.setdefault(name, []).extend(arrays)
    return found


def check_columns(trained: Trained, option: str, columns: Sequence[str]) -> None:
    """Raises UserError unless a model reads as many texts as an option names columns."""
    if trained.config.train.objective == "span":
        return  # where data/tasks/spans.py checks them
    own = TEXT_COLUMNS[: len(columns)] if trained.reads_pairs_too else trained.config.task.text
    if not all(columns):
        raise UserError(
            f"{option}={','.join(columns)}: the name of a column is empty; name columns such as {','.join(own)}"
        )
    if len(columns) != len(own):
        raise UserError(
            f"{option}={','.join(columns)}: {trained.directory} reads {counted(len(own), 'text', 'texts')} of each row;"
            f" name {counted(len(own), 'column', 'columns')}, such as {','.join(own)}"
        )


def for_verb(trained: Trained, verb: str) -> Trained:
    """Returns a model as a verb uses it. Raises UserError unless the verb can use its head.

    In Transformers a reranker is a regression: the verb tells whether its output is a number or a logit of relevance.
    """
    if verb == "rank" and trained.source and one_output(trained.config.train.objective, "reranking"):
        config = config_from_dict(config_to_dict(trained.config), "config")
        config.train.objective = "reranking"
        config.task.text = RERANKED
        trained = trained._replace(config=config)
    _check_task(trained, verb)
    return trained


def _check_task(trained: Trained, verb: str) -> None:
    directory, objective = trained.directory, trained.config.train.objective
    objectives = [name for name, of in VERBS.items() if of == verb]
    names = " or ".join([", ".join(objectives[:-1]), objectives[-1]] if len(objectives) > 1 else objectives)
    needs = f"{verb} needs a model that was fine-tuned with train.objective={names}"
    if not trained.fine_tuned:
        what = f"is a {objective} language model" if trained.has_head else "is an encoder without the head of a task"
        raise UserError(f"{directory} {what}; {needs}, as `jaxlm train --config=finetune` does")
    if objective not in objectives:
        other = f": use `jaxlm {VERBS[objective]}`" if objective in VERBS else ""
        raise UserError(f"{directory} was fine-tuned with train.objective={objective}; {needs}{other}")
