"""The files that predictions are written to: JSON Lines, CSV, TSV, Parquet, CoNLL columns, and SQuAD's answers."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.errors import UserError
from jaxlm.evaluation.spans import submission
from jaxlm.runtime.json_output import as_json
from jaxlm.storage import parse_json
from jaxlm.text.labelled import Row
from jaxlm.typed import counted

Prediction = Mapping[str, Any]
TABLES = {".csv": ",", ".tsv": "\t"}


def holds_predictions(file: Path, keys: Sequence[Sequence[str]]) -> bool:
    """Returns whether a file has the columns of predictions: the keys of one kind of them, in order, and no others.

    Labelled examples are not taken for predictions unless they have the same columns.
    """
    try:
        names = list(dict.fromkeys(name.partition(".")[0] for name in _columns(file)))
    except (OSError, ValueError, csv.Error):  # not UTF-8, not JSON, not CSV; ArrowInvalid is a ValueError
        return False
    return any(names == list(some) for some in keys)


def holds_answers(file: Path, rows: Sequence[Row]) -> bool:
    """Returns whether a file is a JSON object with a text for the id of each row and nothing else, as `answer` writes.

    Any other object of texts might be the user's.
    """
    if file.suffix != ".json":
        return False
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ids = {row.values.get("id") for row in rows}
    return isinstance(found, dict) and found.keys() == ids and all(isinstance(text, str) for text in found.values())


def _columns(file: Path) -> list[str]:
    """Returns the names of the columns of a file; [] if it has none. Raises OSError or ValueError."""
    if file.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_schema(file).names
    with open(file, "rb") as stream:
        line = stream.readline(2**24).decode("utf-8-sig")
    if file.suffix in TABLES:
        return next(csv.reader([line], delimiter=TABLES[file.suffix]), [])
    found = parse_json(line)
    return list(found) if isinstance(found, dict) else []


def _write_jsonl(file: BinaryIO, predictions: Iterator[Prediction]) -> None:
    for prediction in predictions:
        file.write(json.dumps(as_json(prediction), ensure_ascii=False).encode() + b"\n")


def _write_csv(file: BinaryIO, predictions: Iterator[Prediction]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_table(predictions))
    text.detach()


def _write_tsv(file: BinaryIO, predictions: Iterator[Prediction]) -> None:
    """Writes columns separated by tabs, without quoting. Raises UserError for a value that has a tab or a line end."""
    for number, row in enumerate(_table(predictions)):
        for cell in row:
            if any(character in cell for character in "\t\n\r"):
                raise UserError(
                    f"prediction {number}: {cell[:60]!r} has a tab or a line end, which a .tsv file cannot contain;"
                    " write a .jsonl or .csv file"
                )
        file.write("\t".join(row).encode() + b"\n")


def _table(predictions: Iterator[Prediction]) -> Iterator[list[str]]:
    """Yields the header and a row for each prediction: an object has a column for each key, a list is JSON."""
    for number, prediction in enumerate(predictions):
        cells = dict(_cells(as_json(prediction)))
        if number == 0:
            yield list(cells)
        yield list(cells.values())


def _cells(prediction: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in prediction.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", text) for inner, text in _cells(value))
        elif isinstance(value, str):
            yield name, value
        else:
            yield name, "" if value is None else json.dumps(value, ensure_ascii=False)


def _write_parquet(file: BinaryIO, predictions: Iterator[Prediction]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([as_json(prediction) for prediction in predictions]), file)


def conll_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yields the lines of CoNLL columns: a word and its tag, separated by a tab, and an empty line after a sentence."""
    for prediction in predictions:
        for word, tag in zip(prediction["words"], prediction["tags"], strict=True):
            yield f"{word}\t{tag}"
        yield ""


def _write_conll(file: BinaryIO, predictions: Iterator[Prediction]) -> None:
    """Writes CoNLL columns. Raises UserError for a word that they cannot have."""

    def checked() -> Iterator[Prediction]:
        for number, prediction in enumerate(predictions, 1):
            for word in prediction["words"]:
                if not word.strip() or any(character in word for character in "\t\n\r"):
                    raise UserError(
                        f"sentence {number}: the word {word[:60]!r} is empty or has a tab or a line end, which CoNLL"
                        " columns cannot contain; write a .jsonl file"
                    )
            yield prediction

    for line in conll_lines(checked()):
        file.write(line.encode() + b"\n")


def _write_squad(file: BinaryIO, predictions: Iterator[Prediction]) -> None:
    """Writes {id: text}, which SQuAD's official scripts read. Raises UserError for an id that occurs twice."""
    found = list(predictions)
    answers = submission(found)
    if len(answers) < len(found):
        raise UserError(
            f"{counted(len(found) - len(answers), 'id occurs', 'ids occur')} more than once in the input, but a"
            " .json file has one answer for each; write a .jsonl file"
        )
    file.write(json.dumps(answers, ensure_ascii=False).encode() + b"\n")


WRITERS: dict[str, Callable[[BinaryIO, Iterator[Prediction]], None]] = {
    ".jsonl": _write_jsonl, ".csv": _write_csv, ".tsv": _write_tsv, ".parquet": _write_parquet,
    ".conll": _write_conll, ".json": _write_squad,
}  # fmt: skip
