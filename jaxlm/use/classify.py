"""`jaxlm classify`: the class of each text or pair, its classes, or a number; also by a template without training."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.labelled import Row
from jaxlm.use.loading import TEXT_COLUMNS, Trained
from jaxlm.use.task_input import TaskInput
from jaxlm.use.task_model import TaskModel
from jaxlm.use.task_verb import Predictions, TaskVerb, columns_of, run_verb
from jaxlm.use.zero_shot import as_options, with_template


def texts_of(model: TaskModel, row: Row) -> list[str]:
    """Returns the texts of a row."""
    return ["" if (text := row.values[name]) is None else text for name in model.config.task.text]


def classify(model: TaskModel, texts: Sequence[str | Sequence[str]]) -> list[dict[str, Any]]:
    """Returns what is predicted for each text, or for each (first, second) if the model reads pairs.

    The objects are those that the verb writes. Raises UserError.
    """
    rows = []
    for number, text in enumerate(texts, 1):
        parts = [text] if isinstance(text, str) else list(text)
        columns = TEXT_COLUMNS[: len(parts)] if model.trained.reads_pairs_too else model.config.task.text
        if len(parts) != len(columns) or not all(isinstance(part, str) for part in parts):
            expected = "a str" if len(columns) == 1 else "a pair of str, since the model was trained on pairs"
            if len(columns) > 2:
                expected = f"{len(columns)} str, one for each column of the template ({', '.join(columns)})"
            raise UserError(f"text {number} must be {expected}")
        rows.append(Row(f"text {number}", dict(zip(columns, parts, strict=True))))
    model.read_columns_of(rows)
    return model.predict(rows, "the texts")


def _of_line(model: TaskModel, args: argparse.Namespace, text: str, place: str) -> Row:
    return columns_of(model, text, place)


def _given(model: TaskModel, row: Row) -> dict[str, Any]:
    texts = texts_of(model, row)
    return {"text": texts[0] if len(texts) == 1 else texts}


def show(model: TaskModel, predictions: Predictions) -> Iterator[str]:
    """Yields a line with what is predicted, and the text."""
    for row, found in predictions:
        yield _line(model, row, found)


def _line(model: TaskModel, row: Row, found: dict[str, Any]) -> str:
    text = " | ".join(" ".join(text.split()) for text in texts_of(model, row))
    if "value" in found:
        return f"{found['value']:10.4f}  {text}"
    if "label" in found:
        width = max(map(len, model.labels))
        return f"{found['probability']:6.1%}  {found['label']:<{width}}  {text}"
    chosen = ", ".join(f"{label} {found['probabilities'][label]:.1%}" for label in found["labels"])
    return f"{chosen or '(no label)'}  {text}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", metavar="TEXT", help="classify with a masked language model that was not fine-tuned: a text with "
        "a column in braces and one mask, such as '{text} It was [MASK].'",
    )  # fmt: skip
    parser.add_argument(
        "--label-words", metavar="LABEL=WORD,...", help="with --template: the labels and the words that stand for them "
        "at the mask, one token each; WORD/WORD for several, LABEL alone for its own name",
    )  # fmt: skip


def _prepare(trained: Trained, args: argparse.Namespace) -> Trained:
    """Returns the model, with --template as a classifier. Raises UserError."""
    if args.template is None:
        if args.label_words is not None:
            raise UserError("--label-words applies to --template, which is not given")
        return trained
    words = [entry for entry in (args.label_words or "").split(",") if entry.strip()]
    try:
        return with_template(trained, args.template, words)
    except UserError as error:
        raise UserError(as_options(str(error))) from error


VERB = TaskVerb(
    "classify",
    "Print for each text its label and the label's probability; the labels whose probability is above one half, if the "
    "model was trained with several per text; or its number. The model is a work directory that was fine-tuned with "
    "train.objective=classification, multi_label, regression or template, or a Hugging Face directory with a "
    "...ForSequenceClassification. Probabilities, texts and columns are those "
    "of the run, so that the predictions for its evaluation set are those in its folder predictions. With --template "
    "and --label-words, any masked language model predicts the label whose word best fills the mask.",
    (
        "jaxlm classify --model=runs/sst2 'A warm, funny film.' 'It drags.'",
        "jaxlm classify --model=runs/sst2 --input=new.tsv --output=labels.jsonl",
    ),
    "texts; the two texts of a pair are separated by a tab (default: the lines of --input or of standard input)",
    TaskInput(_of_line, ".txt (a text or pair per line, empty lines included), .jsonl, .csv, .tsv or .parquet"),
    _given, show, (("label", "probability", "probabilities"), ("labels", "probabilities"), ("value",)),
    options=_options, prepare=_prepare,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm classify --model=DIR [TEXT ...]`."""
    return run_verb(VERB, argv)
