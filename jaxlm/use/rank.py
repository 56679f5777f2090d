"""`jaxlm rank`: passages in the order of how well they answer a query."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.labelled import Row
from jaxlm.use.task_input import TaskInput
from jaxlm.use.task_model import TaskModel
from jaxlm.use.task_verb import Predictions, TaskVerb, columns_of, run_verb


def rank(model: TaskModel, query: str, passages: Sequence[str]) -> list[dict[str, Any]]:
    """Returns {"index", "score"} of each passage, the best first; the index is that in `passages`. Raises UserError."""
    if not isinstance(query, str):
        raise UserError(f"query must be a str, not {type(query).__name__}")
    first, second = model.config.task.text
    rows = [Row(f"passage {n}", {first: query, second: passage}) for n, passage in enumerate(passages, 1)]
    found = model.predict(rows, "the passages")
    order = sorted(range(len(found)), key=lambda number: found[number]["rank"])
    return [{"index": number, "score": found[number]["score"]} for number in order]


def _of_line(model: TaskModel, args: argparse.Namespace, text: str, place: str) -> Row:
    if args.query is None:
        return columns_of(model, text, place, "; or give the query of all passages with --query")
    first, second = model.config.task.text
    return Row(place, {first: args.query, second: text})


def _given(model: TaskModel, row: Row) -> dict[str, Any]:
    query, passage = (row.values[name] for name in model.config.task.text)
    return {"query": query, "passage": passage}


def show(model: TaskModel, predictions: Predictions) -> Iterator[str]:
    """Yields a line with the rank, the score and the passage; if there are several queries, under each of them."""
    queries: dict[str, list[tuple[int, str]]] = {}
    for row, found in predictions:
        query, passage = (row.values[name] or "" for name in model.config.task.text)
        line = f"{found['rank']:4}  {found['score']:9.3f}  {' '.join(passage.split())}"
        queries.setdefault(query.strip(), []).append((found["rank"], line))
    for query, lines in queries.items():
        if len(queries) > 1:
            yield " ".join(query.split())
        yield from (line for _, line in sorted(lines))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--query", metavar="TEXT", help="the query that the passages are ranked for")


VERB = TaskVerb(
    "rank",
    "Print passages in the order of how well they answer a query, with their rank and score, a logit. The model is a "
    "work directory that was fine-tuned with train.objective=reranking, or a Hugging Face directory with a "
    "...ForSequenceClassification that has one output. The predictions of --json and --output are in "
    "the order of the input; a file of pairs may have any number of queries.",
    (
        "jaxlm rank --model=runs/rank --query='who wrote Faust' --input=passages.txt",
        "jaxlm rank --model=runs/rank --input=pairs.tsv --output=scores.jsonl",
    ),
    "passages for --query, or queries and passages, separated by a tab (default: the lines of --input or of standard "
    "input)",
    TaskInput(_of_line, ".txt (a passage or pair per line), .jsonl, .csv, .tsv or .parquet", line_option="query"),
    _given, show, (("score", "rank"),), options=_options,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm rank --model=DIR [PASSAGE ...]`."""
    return run_verb(VERB, argv)
