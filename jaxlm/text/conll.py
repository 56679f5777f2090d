"""Reads sentences whose words have tags: CoNLL columns, and lists of words and tags in JSON Lines and Parquet.

A sentence is a `Row` with the values "words", a list of texts, "tags", a list of as many texts, or None if the file has
none, and "line", the number of the line of its first word, or 0 if the whole sentence is in one line.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.formats import ENDINGS, ending, lines, text_blocks
from jaxlm.text.labelled import Row, check_file, lines_of, read_table
from jaxlm.typed import counted, cut, shown

DOCUMENT = "-DOCSTART-"  # the word of a line that begins a document in CoNLL-2003
_log = logging.getLogger("jaxlm")


def read_sentences(path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
    """Returns the sentences of a file that the setting `setting` names, in order.

    `labelled` ones must have tags. The columns of words and tags are task.words and task.tags: by default the first and
    the last of CoNLL columns, and the fields words and tags of JSON Lines and Parquet. Every other file than these two
    is taken as CoNLL columns. Raises UserError for what is no such file, and for a sentence with more or fewer tags
    than words.
    """
    check_file(path, setting)
    task, kind = config.task, config.data.format
    if kind == "auto":
        kind = ENDINGS.get(ending(path), "text")
    if kind == "csv":
        raise UserError(
            f"{path}: tagged words are read from CoNLL columns, JSON Lines and Parquet, not from CSV; convert the file,"
            " or set data.format=tsv if its columns are separated by tabs or spaces"
        )
    if kind in ("jsonl", "parquet"):
        rows = list(_lists(path, setting, config, labelled))
    else:
        rows = list(_columns(path, config.data.encoding, task, labelled))
    if not any(row.values["words"] for row in rows):
        raise UserError(f"{path} contains no sentences; set {setting} to the file with the tagged words")
    return rows


def place_of_word(row: Row, number: int) -> str:
    """Returns where a word of a sentence is, for messages; `number` counts from 0."""
    if line := row.values["line"]:
        return f"{row.place.rpartition(', line ')[0]}, line {line + number}"
    return f"{row.place}, word {number + 1}"


# CoNLL columns


def _columns(path: File, encoding: str, task: Any, labelled: bool) -> Iterator[Row]:
    """Yields the sentences of a file with a word in each line, and empty lines between sentences."""
    sentences = list(_sentences(path, encoding))
    if not sentences:
        return
    tabs = sum(1 if "\t" in line else -1 for sentence in sentences for _, line in sentence) > 0
    split = [[(number, _fields(line, tabs)) for number, line in sentence] for sentence in sentences]
    width = Counter(len(fields) for sentence in split for _, fields in sentence).most_common(1)[0][0]
    if labelled and width == 1:
        raise UserError(
            f"{path}, line {split[0][0][0]}: one column, but words and their tags are needed, separated by a tab or"
            " spaces; set task.train and task.evaluation to files with tags"
        )
    word = _column(task.words or "0", "task.words", path, width)
    with_tags = labelled or (width > 1 and _exists(task.tags, width))
    tag = _column(task.tags or "-1", "task.tags", path, width) if with_tags else None
    if word == tag:
        raise UserError(f"{path}: words and tags are in the same column {word}; set task.words and task.tags")
    bad: list[int] = []
    for sentence in split:
        sentence = _without_comments(sentence, width)
        wrong = [number for number, fields in sentence if len(fields) != width]
        bad += wrong
        if sentence and not wrong:
            words = [fields[word] for _, fields in sentence]
            tags = None if tag is None else [fields[tag].strip(" ") for _, fields in sentence]
            line = sentence[0][0]
            yield Row(f"{path}, line {line}", {"words": words, "tags": tags, "line": line})
    if bad:
        found = counted(len(bad), "line does", "lines do")
        text = f"{path}: {found} not have {counted(width, 'column', 'columns')}, as most do ({lines_of(bad)})"
        if task.bad_rows != "skip":
            raise UserError(f"{text}; give each word one tag, or set task.bad_rows=skip to leave their sentences out")
        _log.warning("%s; their sentences are skipped", text)


def _sentences(path: File, encoding: str) -> Iterator[list[tuple[int, str]]]:
    """Yields the number and the text of each line of a sentence, and no sentence that is empty.

    Separators are empty lines, also with white space in them, and lines that begin a document.
    """
    sentence: list[tuple[int, str]] = []
    for number, line in enumerate(lines(text_blocks(path, encoding)), 1):
        if line.strip() and not line.startswith(DOCUMENT):
            sentence.append((number, line))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _fields(line: str, tabs: bool) -> list[str]:
    """Returns the columns of a line, which are separated by tabs, or by any number of spaces and tabs.

    Other white space, such as a no-break space, belongs to a word.
    """
    line = line.rstrip("\t ")
    return line.split("\t") if tabs else re.split("[\t ]+", line.lstrip("\t "))


def _without_comments(sentence: list[tuple[int, list[str]]], width: int) -> list[tuple[int, list[str]]]:
    """Returns the lines of a sentence without comments, as in CoNLL-U.

    They are its first lines if they begin with "#" and have another number of columns than words have.
    """
    first = 0
    while first < len(sentence) and sentence[first][1][0].startswith("#") and len(sentence[first][1]) != width:
        first += 1
    return sentence[first:]


def _exists(column: str, width: int) -> bool:
    """Returns whether a file has a column; the default, the last, is always there."""
    return not column or not column.lstrip("-").isdecimal() or -width <= int(column) < width


def _column(name: str, setting: str, path: File, width: int) -> int:
    """Returns the number of a column from 0. Raises UserError if the file has no such column."""
    if not re.fullmatch(r"-?\d{1,9}", name, re.ASCII) or not -width <= int(name) < width:
        raise UserError(
            f"{setting}={cut(name)}: the lines of {path} have {width} columns; give a number from 0 to {width - 1}, or"
            " from the end as -1"
        )
    return int(name) % width


# Lists


def _lists(path: File, setting: str, config: Any, labelled: bool) -> Iterator[Row]:
    """Yields the sentences of a file that has a list of words and a list of tags for each."""
    task = config.task
    words, tags = task.words or "words", task.tags or "tags"
    if words == tags:
        raise UserError(f"task.words={words} and task.tags={tags}: must be different columns")
    columns = {words: "task.words"} | ({tags: "task.tags"} if labelled else {})
    for row in read_table(path, setting, config.data, columns, header=True, skip_bad_rows=False):
        found = row.values[words]
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise UserError(f"{row.place}: {words}={shown(found)}: expected a list of texts, one for each word")
        given = row.values.get(tags)
        _check_characters(row.place, found)
        if given is None and not labelled:
            names = None
        elif isinstance(given, list) and all(isinstance(tag, str | int) for tag in given):
            if len(given) != len(found):
                raise UserError(
                    f"{row.place}: {counted(len(found), 'word', 'words')} in {words}, but"
                    f" {counted(len(given), 'tag', 'tags')} in {tags}; give each word one tag"
                )
            _check_characters(row.place, [tag for tag in given if isinstance(tag, str)])
            names = [_name(tag, task.labels, tags, f"{row.place}, word {n}") for n, tag in enumerate(given, 1)]
        else:
            raise UserError(f"{row.place}: {tags}={shown(given)}: expected a list of tags, one for each word")
        yield Row(row.place, {"words": found, "tags": names, "line": 0})


def _check_characters(place: str, texts: list[str]) -> None:
    """Raises UserError if a text of JSON cannot be written as UTF-8."""
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{place}: {cut(ascii(text))} contains half of a surrogate pair; fix it")


def _name(tag: Any, labels: tuple[str, ...], column: str, place: str) -> str:
    """Returns the name of a tag; a whole number is its place in task.labels. Raises UserError."""
    if isinstance(tag, str):
        return tag.strip()
    if isinstance(tag, bool) or not labels:
        raise UserError(
            f"{place}: the tag {shown(tag)} in {column} is not a name; set task.labels to the names of the tags, in the"
            " order of their numbers from 0"
        )
    if not 0 <= tag < len(labels):
        raise UserError(
            f"{place}: the tag {shown(tag)} in {column} is not one of 0 to {len(labels) - 1} of task.labels"
        )
    return labels[tag]
