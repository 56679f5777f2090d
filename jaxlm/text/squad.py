"""Reads questions about contexts: SQuAD 1.1 and 2.0 in JSON, and the same fields in JSON Lines and Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.storage import parse_json, reason
from jaxlm.text.formats import ending, format_of, json_records, parquet_records, text_blocks
from jaxlm.text.labelled import Row, check_file
from jaxlm.typed import Record, cut, shown

FORMATS = ("jsonl", "parquet")  # beside SQuAD's own, which is JSON
_REMEDY = "fix the file"


class Answer(NamedTuple):
    """An answer to a question, and where the file says that it begins in the context."""

    text: str
    start: int  # in characters, that is, Unicode code points; the file's claim, which may be wrong

    def is_in(self, context: str) -> bool:
        """Returns whether the context has this text at this place."""
        return self.start >= 0 and bool(self.text) and context.startswith(self.text, self.start)


def read_questions(path: Path, setting: str, settings: Any, labelled: bool) -> list[Row]:
    """Returns the questions of a file, with the values id, question, context (texts) and answers.

    answers is a list of `Answer`, empty if the context has no answer; None if the file does not say. Nothing in a text
    is changed. `setting` names where the path comes from; `settings` has `format` and `encoding`, as section `data` of
    a config. Raises UserError for what is no such file, an id that occurs twice, and, if questions must be `labelled`,
    for one without answers and for a file in which no question has one.
    """
    check_file(path, setting)
    rows, seen = [], set[str]()
    for row in _rows(path, settings):
        id = row.values["id"]
        if id in seen:
            raise UserError(f"{row.place}: the id {cut(id)} occurs twice in this file; ids must be unique")
        seen.add(id)
        rows.append(row)
    if not rows:
        raise UserError(f"{path} contains no questions; set {setting} to the file with the questions")
    if any(row.values["answers"] for row in rows):
        for row in rows if labelled else ():
            if row.values["answers"] is None:
                raise UserError(f"{row.place} lacks answers; {_REMEDY}: a question without one has an empty list")
        return rows
    if labelled:
        raise UserError(f"{path}: no question has an answer; set {setting} to a file with answers")
    return [Row(row.place, {**row.values, "answers": None}) for row in rows]


def _rows(path: Path, settings: Any) -> Iterator[Row]:
    if settings.format == "auto" and ending(path) == ".json":
        yield from _squad(path, settings.encoding)
        return
    kind = format_of(path, settings)
    if kind not in FORMATS:
        raise UserError(
            f"{path} has the format {kind}, but questions are read from SQuAD's JSON (.json), jsonl and parquet;"
            " convert the file"
        )
    found = json_records(path, settings.encoding, "question") if kind == "jsonl" else parquet_records(path)
    for place, values in found:
        record = Record(place, values, _REMEDY)
        yield _row(place, record, record.text("context"))


def _squad(path: Path, encoding: str) -> Iterator[Row]:
    """Yields the questions of a file in SQuAD's format: {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}."""
    try:
        content = parse_json("".join(text_blocks(path, encoding)))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({reason(error)}): fix it, or name JSON Lines .jsonl") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise UserError(
            f'{path} is not in the format of SQuAD, {{"data": [{{"paragraphs": [...]}}]}}; convert it, or name JSON'
            " Lines .jsonl"
        )
    for number, article in enumerate(Record(path, content, _REMEDY).items("data", dict)):
        where = f"{path}: data, item {number}"
        for inner, paragraph in enumerate(Record(where, article, _REMEDY).items("paragraphs", dict)):
            record = Record(f"{where}: paragraphs, item {inner}", paragraph, _REMEDY)
            context = record.text("context")
            for last, question in enumerate(record.items("qas", dict)):
                yield _row(None, Record(f"{record.where}: qas, item {last}", question, _REMEDY), context, path)


def _row(place: str | None, record: Record, context: str, path: Path | None = None) -> Row:
    """Returns a question; without a place in the file, its id names it."""
    id = record.content.get("id")
    if isinstance(id, bool) or not isinstance(id, int | str) or id == "":
        raise UserError(f"{record.where}: id={shown(id)}: expected a text or a whole number; {_REMEDY}")
    place = place or f"{path}, question {cut(str(id))}"
    record = Record(place, record.content, _REMEDY)
    texts = {"id": str(id), "question": record.text("question"), "context": context}
    for name, text in texts.items():
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{place}: {name} contains half of a surrogate pair; {_REMEDY}")
    return Row(place, {**texts, "answers": _answers(record)})


def _answers(record: Record) -> list[Answer] | None:
    """Returns the answers of a question; None if the file does not say.

    They are a list of objects as in SQuAD, or an object of two lists as in the datasets of Hugging Face.
    """
    given, impossible = record.content.get("answers"), record.boolean("is_impossible", None)
    if isinstance(given, dict):
        columns = record.record("answers")
        texts, starts = columns.items("text", str), columns.items("answer_start", int)
        if len(texts) != len(starts):
            raise UserError(f"{record.where}: answers has {len(texts)} text but {len(starts)} answer_start; {_REMEDY}")
        answers = [Answer(text, start) for text, start in zip(texts, starts, strict=True)]
    else:
        objects = [
            Record(f"{record.where}: answers, item {number}", value, _REMEDY)
            for number, value in enumerate(record.items("answers", dict, []))
        ]
        answers = [Answer(one.text("text"), one.integer("answer_start", at_least=-(2**31))) for one in objects]
    if impossible and answers:
        raise UserError(f"{record.where}: is_impossible is true, but there are answers; {_REMEDY}")
    return None if given is None and not impossible else answers
