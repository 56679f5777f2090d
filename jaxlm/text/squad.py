"""Reads questions about contexts: SQuAD 1.1 and 2.0 in JSON, and the same fields in JSON Lines and Parquet.

Questions without answers, to be predicted, may also lie in CSV and TSV.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.storage import parse_json, reason
from jaxlm.text.files import File
from jaxlm.text.formats import ending, format_of, json_records, parquet_records, text_blocks
from jaxlm.text.labelled import Row, check_file, read_table, text_in
from jaxlm.typed import Record, cut, listed, shown

FORMATS = ("jsonl", "parquet")  # beside SQuAD's own, which is JSON
TABLES = ("csv", "tsv")  # for questions without answers
COLUMNS = ("question", "context")  # of SQuAD's own format, and by default of the others
_REMEDY = "fix the file"


class Answer(NamedTuple):
    """An answer to a question, and where the file says that it begins in the context."""

    text: str
    start: int  # in characters, that is, Unicode code points; the file's claim, which may be wrong

    def is_in(self, context: str) -> bool:
        """Returns whether the context has this text at this place."""
        return self.start >= 0 and bool(self.text) and context.startswith(self.text, self.start)


def read_questions(
    path: File, setting: str, settings: Any, labelled: bool, columns: Sequence[str] = COLUMNS, header: bool = True
) -> list[Row]:
    """Returns the questions of a file, with the values id, question, context (texts) and answers.

    answers is a list of `Answer`, empty if the context has no answer; None if the file does not say. An id that is not
    in a row is its number in the file, from 1. Nothing in a text is changed. `setting` names where the path comes from;
    `settings` has `format` and `encoding`, as section `data` of a config; `columns` are those of question and context,
    which task.text names. Raises UserError for what is no such file, an id that occurs twice, and, if questions must be
    `labelled`, for one without answers and for a file in which no question has one.
    """
    check_file(path, setting)
    rows, seen = [], set[str]()
    for row in _rows(path, setting, settings, labelled, columns, header):
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


def _rows(
    path: File, setting: str, settings: Any, labelled: bool, columns: Sequence[str], header: bool
) -> Iterator[Row]:
    question, context = columns
    if settings.format == "auto" and ending(path) == ".json":
        if tuple(columns) != COLUMNS:
            raise UserError(f"task.text={question},{context} has no effect on {path}, SQuAD's own format: remove it")
        yield from _squad(path, settings.encoding)
        return
    kind = format_of(path, settings)
    if kind in TABLES and not labelled:
        yield from _table(path, setting, settings, columns, header)
        return
    if kind not in FORMATS:
        unlabelled = "" if labelled else f", {' and '.join(TABLES)}"
        raise UserError(
            f"{path} has the format {kind}, but questions are read from SQuAD's JSON (.json), jsonl and"
            f" parquet{unlabelled}; convert the file"
        )
    found = json_records(path, settings.encoding, question) if kind == "jsonl" else parquet_records(path)
    for number, (place, values) in enumerate(found, 1):
        for name in columns:
            if name not in values:
                raise UserError(f"{place}: there is no column {name}; the columns are {listed(values)}: set task.text")
        record = Record(place, {"id": number, **values}, _REMEDY)
        yield _row(place, record, record.text(context), question=question)


def _table(path: File, setting: str, settings: Any, columns: Sequence[str], header: bool) -> Iterator[Row]:
    """Yields the questions of a CSV or TSV file, which have no answers."""
    rows = read_table(path, setting, settings, dict.fromkeys(columns, "task.text"), header, skip_bad_rows=False)
    for number, row in enumerate(rows, 1):
        question, context = (text_in(row, name) for name in columns)
        id = row.values.get("id", str(number))
        yield _row(row.place, Record(row.place, {"id": id, "question": question}, _REMEDY), context)


def _squad(path: File, encoding: str) -> Iterator[Row]:
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


def _row(place: str | None, record: Record, context: str, path: File | None = None, question: str = "question") -> Row:
    """Returns a question; without a place in the file, its id names it."""
    id = record.content.get("id")
    if isinstance(id, bool) or not isinstance(id, int | str) or id == "":
        raise UserError(f"{record.where}: id={shown(id)}: expected a text or a whole number; {_REMEDY}")
    place = place or f"{path}, question {cut(str(id))}"
    record = Record(place, record.content, _REMEDY)
    texts = {"id": str(id), "question": record.text(question), "context": context}
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
