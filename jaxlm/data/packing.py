"""Sequences of many lengths in batches of few shapes: several in a row, each its own segment, hardly any padding.

Attention stays within a segment and positions restart with it, so a sequence's states are what they would be alone.
Few shapes mean few compilations; little padding means that time goes where tokens are.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SHORTEST_ROW = 64  # tokens; shorter rows are no faster, and hold fewer sequences
SEGMENTS = 16  # of a row at most, so that what is computed for each segment has a static shape
CPU_TOKENS, ACCELERATOR_TOKENS = 1024, 32_768  # of a batch


class Batch(NamedTuple):
    """Rows of packed sequences. The last three arrays tell of each of its n sequences where it is."""

    tokens: np.ndarray  # int32 [B, L]
    segment_ids: np.ndarray  # int32 [B, L], 1 and up within a row; 0 where nothing is
    sequences: np.ndarray  # int64 [n], which of the sequences given
    rows: np.ndarray  # int64 [n]
    segments: np.ndarray  # int64 [n], its segment id
    starts: np.ndarray  # int64 [n], the place of its first token in its row


def batch_tokens_for(platform: str) -> int:
    """Returns how many tokens of a batch are fast: on a CPU few, so that they stay in its caches."""
    return CPU_TOKENS if platform == "cpu" else ACCELERATOR_TOKENS


def pack(sequences: Sequence[np.ndarray], batch_tokens: int, longest: int, pad_id: int) -> Iterator[Batch]:
    """Yields batches that hold each sequence of token ids once, sequences of like length together.

    A row has 64 tokens or the next power of two that holds its longest sequence, but never more than `longest`, which
    no sequence exceeds: padding has positions too. A batch has as many rows as make `batch_tokens` (one at least); only
    the last batch of a length has fewer: a quarter, or a quarter of that.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    for length, rows in _rows(lengths, longest):
        most = max(1, batch_tokens // length)
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            yield _batch(sequences, part, length, _row_count(len(part), most), pad_id)


def _rows(lengths: np.ndarray, longest: int) -> list[tuple[int, list[list[int]]]]:
    """Returns for each length of rows its rows, as lists of sequences: best fit, the longest first."""
    rows: list[list[int]] = []
    row_lengths: list[int] = []
    open_rows: dict[int, list[int]] = {}  # by the room that is left
    widest = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        room = next((room for room in range(size, widest + 1) if open_rows.get(room)), None)
        if room is None:
            row, room = len(rows), min(longest, max(SHORTEST_ROW, 1 << (size - 1).bit_length()))
            rows.append([])
            row_lengths.append(room)
        else:
            row = open_rows[room].pop()
        rows[row].append(number)
        if len(rows[row]) < SEGMENTS:
            open_rows.setdefault(room - size, []).append(row)
            widest = max(widest, room - size)
    found: dict[int, list[list[int]]] = {}
    for length, row_of in zip(row_lengths, rows, strict=True):
        found.setdefault(length, []).append(row_of)
    return list(found.items())


def _row_count(rows: int, most: int) -> int:
    """Returns the number of rows to compute for `rows`: `most`, a quarter of it, and so on."""
    count = most
    while count // 4 >= rows:
        count //= 4
    return count


def _batch(sequences: Sequence[np.ndarray], rows: list[list[int]], length: int, count: int, pad_id: int) -> Batch:
    tokens = np.full((count, length), pad_id, np.int32)
    segment_ids = np.zeros((count, length), np.int32)
    places = []
    for row, members in enumerate(rows):
        start = 0
        for segment, number in enumerate(members, 1):
            end = start + len(sequences[number])
            tokens[row, start:end], segment_ids[row, start:end] = sequences[number], segment
            places.append((number, row, segment, start))
            start = end
    return Batch(tokens, segment_ids, *np.array(places, np.int64).reshape(-1, 4).T)
