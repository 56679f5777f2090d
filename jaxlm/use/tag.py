"""`jaxlm tag`: a tag for each word of a sentence."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.formats import ENDINGS
from jaxlm.text.labelled import Row
from jaxlm.use.prediction_formats import conll_lines
from jaxlm.use.task_input import TaskInput
from jaxlm.use.task_model import TaskModel
from jaxlm.use.task_verb import Predictions, TaskVerb, run_verb


def tag(model: TaskModel, sentences: Sequence[str | Sequence[str]]) -> list[dict[str, Any]]:
    """Returns the words and the tags of each sentence, a list of words or a str with spaces between them.

    Raises UserError.
    """
    rows = []
    for number, sentence in enumerate(sentences, 1):
        words = sentence.split() if isinstance(sentence, str) else list(sentence)
        if not all(isinstance(word, str) for word in words):
            raise UserError(f"sentence {number} must be a str or a list of str")
        rows.append(_row(words, f"sentence {number}"))
    return model.predict(rows, "the sentences")


def _row(words: list[str], place: str) -> Row:
    return Row(place, {"words": words, "tags": None, "line": 0})


def _without_tags(model: TaskModel, row: Row) -> Row:
    return Row(row.place, {**row.values, "tags": None})


def _is_text(file: File, settings: Any) -> bool:
    """Returns whether a line is a sentence; a .txt file has CoNLL columns, as in training, unless --format says so."""
    return settings.format == "text"


def _of_line(model: TaskModel, args: argparse.Namespace, text: str, place: str) -> Row:
    return _row(text.split(), place)


def show(model: TaskModel, predictions: Predictions) -> Iterator[str]:
    """Yields the words with their tags, a word a line, and an empty line after a sentence, as in CoNLL files."""
    return conll_lines(found for _, found in predictions)


_COLUMNS = dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio"), "text")  # endings of CoNLL columns

VERB = TaskVerb(
    "tag",
    "Print each word of a sentence with its tag, one word a line, and an empty line after each sentence. Words are "
    "separated by spaces. The model is a work directory that was fine-tuned with train.objective=tagging, or a Hugging "
    "Face directory with a ...ForTokenClassification. As in training, a file has CoNLL columns, or lists of words in "
    ".jsonl and .parquet; with --format=text, a line is a sentence.",
    (
        "jaxlm tag --model=runs/ner 'Maria flew to Oslo on Monday .'",
        "jaxlm tag --model=runs/ner --input=new.conll --output=tags.jsonl",
    ),
    "sentences (default: the sentences of --input, or the lines of standard input)",
    TaskInput(
        _of_line, "CoNLL columns, .jsonl or .parquet", "words", has_header=False, endings=ENDINGS | _COLUMNS,
        reads_lines=_is_text, unlabelled=_without_tags,
    ),
    lambda model, row: {}, show, (), (".jsonl", ".parquet", ".conll"),
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm tag --model=DIR [SENTENCE ...]`."""
    return run_verb(VERB, argv)
