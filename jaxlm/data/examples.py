"""Labelled examples: read from a table, tokenized, and packed into the rows of step s.

A row holds several examples, each its own segment, so that hardly any padding is computed. The rows of a step depend on
(seed, step) alone.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import Phase, evaluation_files, phases_of
from jaxlm.data.facts import DataFacts, facts_of
from jaxlm.data.permutation import permute
from jaxlm.data.rows import RowSource, joined, runs_of_parts
from jaxlm.data.unknown import check_spelling, spelling_of_ids
from jaxlm.errors import UserError
from jaxlm.text.formats import format_of, json_records, table_rows
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.typed import cut, listed, shown

FORMATS = ("tsv", "csv", "jsonl")
MANY_LABELS = 20  # with more, a column in which most examples have a label of their own is refused
SHORTEST_EXAMPLE = 4  # tokens, begin and end included: a row of L tokens has room for L / 4 examples
_TRAIN = ""  # the name of the training examples among the evaluation sets, whose names are not empty
_log = logging.getLogger("jaxlm")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Tokenized examples of one file, in its order."""

    tokens: list[np.ndarray]  # int32 [n_i] each: begin, text, end, and for pairs the second text and end
    token_types: list[np.ndarray]  # int32 [n_i] each: 1 in the second text of a pair
    labels: np.ndarray  # int32 [n], -1 where the file has no label
    truncated: int  # examples that were longer than the model's rows and lost their end

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleData:
    """The training examples, the evaluation sets by name, and what they were tokenized with."""

    directory: Path
    fingerprint: str
    tokenizer: Tokenizer
    train: Examples
    evaluation: dict[str, Examples]
    labels: tuple[str, ...]

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in the training examples, int64 [V]."""
        return np.bincount(np.concatenate(self.train.tokens), minlength=self.tokenizer.vocab_size).astype(np.int64)

    @property
    def facts(self) -> DataFacts:
        return facts_of(self.tokenizer, self.counts, self.labels)

    def rows(self, config: Any, phases: Sequence[Phase], seed: int, multiple: int) -> RowSource:
        """Returns the rows of training; the number of rows in a batch is a multiple of `multiple`."""
        return ExampleRows(self.train, phases, seed, self.tokenizer.pad_id, multiple)


def read_examples(config: Any) -> ExampleData:
    """Returns the examples of section `task`, tokenized. Raises UserError that names the file and line at fault."""
    task = config.task
    if not config.tokenizer.path:
        raise UserError(
            f"train.objective={config.train.objective} needs a trained encoder: set init_from to a work directory or a "
            "Hugging Face directory, or tokenizer.path to a tokenizer"
        )
    tokenizer = load_tokenizer(config.tokenizer.path, config.tokenizer.words)
    sets = {_TRAIN: Path(task.train)} | {name: Path(path) for name, path in evaluation_files(config).items()}
    tables = {name: list(_read_table(path, task, config.data)) for name, path in sets.items()}
    labels = _labels_of(tables, sets, task)
    longest = max(phase.sequence_length for phase in phases_of(config))
    found = {
        name: _tokenized(table, tokenizer, labels, longest, sets[name], task.label) for name, table in tables.items()
    }
    for name, examples in found.items():
        if examples.truncated:
            _log.warning("%s: %d of %d examples are longer than %d tokens and lose their end", sets[name],
                         examples.truncated, len(examples), longest)  # fmt: skip
    check_spelling(
        {str(sets[name]): spelling_of_ids(np.concatenate(found[name].tokens), tokenizer) for name in found}, tokenizer
    )
    digest = hashlib.sha256(json.dumps([labels, longest, tokenizer.fingerprint]).encode())
    for examples in found.values():
        for array in (*examples.tokens, *examples.token_types, examples.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
    train = found.pop(_TRAIN)
    return ExampleData(Path(task.train).absolute(), digest.hexdigest()[:32], tokenizer, train, found, labels)


def _read_table(path: Path, task: Any, settings: Any) -> Iterator[tuple[list[str], str | None]]:
    """Yields (texts, label) for each example of a file; `settings` are those of section `data`."""
    if not os.path.isfile(path):
        wrong = "is a folder, a pipe or a device" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {wrong}: set task.train and task.evaluation to the files with the examples")
    kind = format_of(path, settings)
    if kind not in FORMATS:
        raise UserError(
            f"{path} has the format {kind}, but examples are read from {', '.join(FORMATS)}; set data.format to one of "
            "these if the file has it, or convert the file"
        )
    names = [*task.text, task.label]
    if kind == "jsonl":
        for place, record in json_records(path, settings.encoding, task.text[0]):
            yield _fields_of_json(record, names, place)
        return
    table = table_rows(path, kind, settings.encoding)
    header: list[str] = []
    if task.header:
        line, header = next(table, (1, []))
        _check_header(header, names, f"{path}, line {line}")
    for number, row in table:
        if not header:
            header = [str(column) for column in range(len(row))]
            _check_header(header, names, f"{path}, line {number}")
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} columns instead of {len(header)}; fix the line")
        record = dict(zip(header, row, strict=True))
        yield [record[name] for name in task.text], record[task.label].strip() or None


def _check_header(header: Sequence[str], names: Sequence[str], place: str) -> None:
    """Raises UserError unless each column (those of the texts, and last that of the label) occurs once in a header."""
    for name in names if header else ():
        if header.count(name) > 1:
            raise UserError(f"{place}: two columns have the name {name}; rename one of them")
        if name not in header:
            raise _missing_column(name, header, place, "task.label" if name == names[-1] else "task.text")


def _missing_column(name: str, names: Iterable[str], place: str, setting: str) -> UserError:
    return UserError(f"{place}: there is no column {name}; the columns are {listed(names)}: set {setting}")


def _fields_of_json(record: Mapping[str, Any], names: Sequence[str], place: str) -> tuple[list[str], str | None]:
    """Returns the texts and the label of a JSON object; the label is None if it is missing, null or empty."""
    *columns, column = names
    texts = []
    for name in columns:
        if name not in record:
            raise _missing_column(name, record, place, "task.text")
        text = "" if record[name] is None else record[name]
        if not isinstance(text, str):
            raise UserError(f"{place}: {name}={shown(text)}: expected text; set task.text to a field with text")
        texts.append(text)
    label = "" if record.get(column) is None else record[column]
    if not isinstance(label, str | int):
        raise UserError(
            f"{place}: {column}={shown(label)}: expected text, a whole number, true or false; fix the label, or set "
            "task.label to the field with the label"
        )
    label = label if isinstance(label, str) else json.dumps(label)
    if any("\ud800" <= character <= "\udfff" for character in label):
        raise UserError(f"{place}: {column}={label!a} contains half of a surrogate pair; fix the label")
    return texts, label.strip() or None


def _labels_of(tables: Mapping[str, Sequence[tuple[list[str], str | None]]], paths: Mapping[str, Path],
               task: Any) -> tuple[str, ...]:  # fmt: skip
    """Returns the names of the labels. Raises UserError if a file has no example, text or label, or they make no sense
    as classes."""
    for name, table in tables.items():
        if not table:
            raise UserError(f"{paths[name]} holds no example")
        if not any(text.strip() for texts, _ in table for text in texts):
            raise UserError(f"{paths[name]}: all texts in {', '.join(task.text)} are empty; set task.text")
        if all(label is None for _, label in table):
            raise UserError(f"{paths[name]}: no example has a label in {task.label}; set task.label")
    found = Counter(label for _, label in tables[_TRAIN] if label is not None)
    labels = tuple(task.labels) or tuple(sorted(found))
    if len(labels) < 2:
        raise UserError(f"{task.train} has only the label {labels[0]} in {task.label}; at least 2 labels are needed")
    if len(found) > max(MANY_LABELS, found.total() / 2):
        raise UserError(
            f"{task.train} has {len(found):,} different labels in {task.label} for {found.total():,} examples, too few "
            "for each to learn from; set task.label to the column with the class"
        )
    return labels


def _tokenized(
    table: Sequence[tuple[list[str], str | None]], tokenizer: Tokenizer, labels: Sequence[str], longest: int,
    path: Path, column: str,
) -> Examples:  # fmt: skip
    number = {label: index for index, label in enumerate(labels)}
    unknown = Counter(label for _, label in table if label is not None and label not in number)
    if unknown:
        name, count = unknown.most_common(1)[0]
        raise UserError(
            f"{path}: {count} examples have the label {cut(name)} in {column}, which is not one of {listed(labels)}; "
            "fix the file, or set task.label or task.labels"
        )
    parts = [[encoding.ids for encoding in tokenizer.encode_batch(column)]
             for column in zip(*(texts for texts, _ in table), strict=True)]  # fmt: skip
    tokens, types, truncated = [], [], 0
    for pieces in zip(*parts, strict=True):
        sizes = _truncated([len(piece) for piece in pieces], longest - 1 - len(pieces))
        truncated += sum(sizes) < sum(map(len, pieces))
        joined, kinds = [[tokenizer.begin_id]], [0]
        for kind, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
            joined += [piece[:size], [tokenizer.end_id]]
            kinds += [kind] * (size + 1)
        tokens.append(np.concatenate(joined).astype(np.int32))
        types.append(np.array(kinds, np.int32))
    found = np.array([-1 if label is None else number[label] for _, label in table], np.int32)
    return Examples(tokens, types, found, truncated)


def _truncated(sizes: list[int], room: int) -> list[int]:
    """Returns the sizes cut to `room` in all, always at the longest."""
    sizes = list(sizes)
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    excess = sum(sizes) - room
    while excess > 0:
        longest = sizes.index(max(sizes))
        sizes[longest] -= 1
        excess -= 1
    return sizes


# Rows


def pack_examples(
    examples: Examples, chosen: Sequence[int], length: int, pad_id: int, multiple: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the chosen examples packed into rows, and where each went: int64 [n, 2], row and segment from 0.

    The batch holds tokens, segment_ids and token_types int32 [R, L] and labels int32 [R, L / 4], -1 where a row has
    fewer segments. R is a multiple of `multiple`, and one of a few sizes, so that few programs are compiled.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    slots = length // SHORTEST_EXAMPLE
    place = np.zeros((len(chosen), 2), np.int64)
    for number in sorted(range(len(chosen)), key=lambda n: -len(examples.tokens[chosen[n]])):  # first fit decreasing
        size = len(examples.tokens[chosen[number]])
        row = next((r for r in range(len(rows)) if room[r] >= size and len(rows[r]) < slots), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        place[number] = row, len(rows[row])
        rows[row].append(number)
        room[row] -= size
    count = _row_count(math.ceil(len(rows) / multiple)) * multiple
    tokens = np.full((count, length), pad_id, np.int32)
    segment_ids, token_types = np.zeros_like(tokens), np.zeros_like(tokens)
    labels = np.full((count, slots), -1, np.int32)
    for row, members in enumerate(rows):
        start = 0
        for segment, number in enumerate(members):
            example = chosen[number]
            end = start + len(examples.tokens[example])
            tokens[row, start:end] = examples.tokens[example]
            token_types[row, start:end] = examples.token_types[example]
            segment_ids[row, start:end] = segment + 1
            labels[row, segment] = examples.labels[example]
            start = end
    return {"tokens": tokens, "segment_ids": segment_ids, "token_types": token_types, "labels": labels}, place


def _row_count(rows: int) -> int:
    """Returns the next number of rows that is at most three significant bits: 1 to 8, 10, 12, 14, 16, 20, ..."""
    unit = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // unit) * unit


class ExampleRows(RowSource):
    """The rows of training: `batch_size` examples per step, in an order that is new in each epoch, packed."""

    columns: Mapping[str, Any] = dict.fromkeys(("tokens", "segment_ids", "token_types", "labels"), np.int32)

    def __init__(self, examples: Examples, phases: Sequence[Phase], seed: int, pad_id: int, multiple: int) -> None:
        self.examples, self.phases, self.seed = examples, tuple(phases), seed
        self.pad_id, self.multiple = pad_id, multiple
        self._first: list[tuple[int, int]] = []  # of each phase: its first step, and the examples before it
        step = consumed = 0
        for phase in self.phases:
            self._first.append((step, consumed))
            step += phase.steps or 0
            consumed += (phase.steps or 0) * phase.batch_size
        self._packed: tuple[int, dict[str, np.ndarray]] | None = None

    def examples_of_step(self, step: int) -> np.ndarray:
        """Returns the examples of a step, int64 [batch_size]."""
        number = max(n for n, (first, _) in enumerate(self._first) if first <= step)
        first, consumed = self._first[number]
        size, total = self.phases[number].batch_size, len(self.examples)
        index = consumed + (step - first) * size + np.arange(size)
        epochs = index // total
        chosen = index % total
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = permute(chosen[here], total, (self.seed, int(epoch)))
        return chosen

    def _whole(self, step: int) -> dict[str, np.ndarray]:
        if self._packed is None or self._packed[0] != step:
            number = max(n for n, (first, _) in enumerate(self._first) if first <= step)
            length = self.phases[number].sequence_length
            batch, _ = pack_examples(
                self.examples, self.examples_of_step(step).tolist(), length, self.pad_id, self.multiple
            )
            self._packed = step, batch
        return self._packed[1]

    def batch_rows(self, step: int) -> int:
        return len(self._whole(step)["tokens"])

    def batch(self, step: int, first: int = 0, last: int | None = None) -> dict[str, np.ndarray]:
        return {name: array[first:last] for name, array in self._whole(step).items()}

    def steps_for(self, epochs: float | None, tokens: float | None) -> int:
        if epochs is None:
            raise UserError("train.tokens does not apply to labelled examples; set train.epochs or train.steps")
        done, wanted = self._first[-1][1], epochs * len(self.examples)
        return max(self._first[-1][0] + math.ceil((wanted - done) / self.phases[-1].batch_size), 1)

    def describe(self) -> str:
        return f"{len(self.examples):,} examples per epoch"


def evaluation_batches(
    examples: Examples, length: int, rows: int, pad_id: int, parts_here: Sequence[int] = (0,), parts: int = 1
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Yields (rows of a batch, its examples int64 [n], their rows and segments int64 [n, 2]); each example once.

    A batch has `rows` rows, or a multiple if they do not pack well. A process gets the rows of its parts, and the
    examples of all of them.
    """
    slots, room = length // SHORTEST_EXAMPLE, int(0.9 * rows * length)
    chosen: list[int] = []
    used = 0
    for number in range(len(examples) + 1):
        size = len(examples.tokens[number]) if number < len(examples) else room + 1
        if chosen and (used + size > room or len(chosen) >= rows * slots):
            batch, place = pack_examples(examples, chosen, length, pad_id, rows)
            runs = runs_of_parts(parts_here, parts, len(batch["tokens"]))
            local = {name: joined([array[slice(*run)] for run in runs]) for name, array in batch.items()}
            yield local, np.array(chosen), place
            used, chosen = 0, []
        chosen.append(number)
        used += size
