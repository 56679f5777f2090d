"""`jaxlm answer`: the answer to a question, a slice of its context."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import local_path, read_text
from jaxlm.text.files import File
from jaxlm.text.formats import ENDINGS, ending, format_of
from jaxlm.text.labelled import Row
from jaxlm.use.task_input import TaskInput
from jaxlm.use.task_model import TaskModel
from jaxlm.use.task_verb import TABLES, Predictions, TaskVerb, run_verb


def answer(model: TaskModel, questions: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Returns the answer to each (question, context). Raises UserError."""
    rows = []
    for number, pair in enumerate(questions, 1):
        parts = [] if isinstance(pair, str) else list(pair)
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise UserError(f"question {number} must be a pair of str, the question and its context")
        question, context = parts
        rows.append(_row(question, context, f"question {number}", str(number)))
    return model.predict(rows, "the questions")


def _row(question: str, context: str, place: str, name: str) -> Row:
    return Row(place, {"id": name, "question": question, "context": context, "answers": None})


def _of_line(model: TaskModel, args: argparse.Namespace, text: str, place: str) -> Row:
    name = place.rpartition(" ")[2]
    if args.context:
        return _row(text, read_text(local_path("--context", args.context)), place, name)
    if text.count("\t") != 1:
        raise UserError(
            f"{place}: expected a question and its context, separated by one tab, but there are {text.count(chr(9))};"
            " or name a file with the context of all questions with --context"
        )
    question, _, context = text.partition("\t")
    return _row(question, context, place, name)


def _without_answers(model: TaskModel, row: Row) -> Row:
    return Row(row.place, {**row.values, "answers": None})


def _is_text(file: File, settings: Any) -> bool:
    of_squad = settings.format == "auto" and ending(file) == ".json"
    return not of_squad and format_of(file, settings) == "text"


def _given(model: TaskModel, row: Row) -> dict[str, Any]:
    return {"question": row.values["question"]}


def show(model: TaskModel, predictions: Predictions) -> Iterator[str]:
    """Yields a line with the score of the answer, the question and the answer."""
    for row, found in predictions:
        question, text = (" ".join(part.split()) for part in (row.values["question"], found["text"]))
        yield f"{found['score']:9.3f}  {question}  {text or '(no answer)'}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", metavar="FILE", help="a text file with the context of all questions")


VERB = TaskVerb(
    "answer",
    "Print for each question the score of its answer, the question, and the answer, an exact slice of the context. The "
    "model is a work directory that was fine-tuned with train.objective=span, or a Hugging Face directory with a "
    "...ForQuestionAnswering. Files are SQuAD's .json, or .jsonl, "
    ".parquet, .csv and .tsv with the columns question and context.",
    (
        "jaxlm answer --model=runs/squad --context=README.md 'What does it need?'",
        "jaxlm answer --model=runs/squad --input=dev.json --output=answers.jsonl",
    ),
    "questions about the text of --context, or questions and their contexts, separated by a tab (default: the lines of "
    "--input or of standard input)",
    TaskInput(
        _of_line, "SQuAD's .json, or .jsonl, .parquet, .csv or .tsv with a question and its context in each row",
        endings=ENDINGS | {".json": "squad"}, reads_lines=_is_text, unlabelled=_without_answers,
        line_option="context",
    ),
    _given, show, (("id", "text", "start", "end", "score", "null_score", "n_best"),), (*TABLES, ".json"), _options,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm answer --model=DIR [QUESTION ...]`."""
    return run_verb(VERB, argv)
