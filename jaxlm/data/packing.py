"""Packs sequences of many lengths into batches of few shapes: several sequences in a row, each its own segment.

Attention stays within a segment and positions restart in each, so the outputs for a sequence are the same as if it were
alone. Few shapes need few compilations, and little padding wastes little computation.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SHORTEST_ROW = 64  # tokens; shorter rows are not faster and hold fewer sequences
SEGMENTS = 16  # the most in a row, so that results per segment have a static shape
CPU_TOKENS, ACCELERATOR_TOKENS = 1024, 32_768  # in a batch


class Batch(NamedTuple):
    """Rows of packed sequences. The last four arrays locate each of the n sequences of the batch."""

    tokens: np.ndarray  # int32 [B, L]
    segment_ids: np.ndarray  # int32 [B, L], 1, 2, ... within a row; 0 on padding
    sequences: np.ndarray  # int64 [n], index of the sequence among all those to pack
    rows: np.ndarray  # int64 [n], its row
    segments: np.ndarray  # int64 [n], its segment id
    starts: np.ndarray  # int64 [n], index of its first token in the row


def batch_tokens_for(platform: str) -> int:
    """Returns an efficient number of tokens in a batch: small on a CPU, so that activations stay in its caches."""
    return CPU_TOKENS if platform == "cpu" else ACCELERATOR_TOKENS


def pack(
    sequences: Sequence[np.ndarray], batch_tokens: int, longest: int, pad_id: int, shortest: int = SHORTEST_ROW,
    segments: int = SEGMENTS,
) -> Iterator[Batch]:  # fmt: skip
    """Yields batches that contain each sequence of token ids once, with sequences of similar length together.

    The length of a row is the smallest power of two, at least `shortest`, that fits its longest sequence, but at most
    the model's limit `longest`, which no sequence exceeds (padding has positions too). It holds at most `segments`
    sequences. A batch has max(1, `batch_tokens` // length) rows; only the last batch of each length may have fewer: a
    quarter of them, a sixteenth, and so on.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    for length, rows in _rows(lengths, longest, shortest, segments):
        most = max(1, batch_tokens // length)
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            yield _batch(sequences, part, length, _row_count(len(part), most), pad_id)


def _rows(lengths: np.ndarray, longest: int, shortest: int, segments: int) -> list[tuple[int, list[list[int]]]]:
    """Returns (row length, rows) for each row length, a row being a list of sequences: best fit, longest first."""
    rows: list[list[int]] = []
    row_lengths: list[int] = []
    open_rows: dict[int, list[int]] = {}  # by remaining space
    widest = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        room = next((room for room in range(size, widest + 1) if open_rows.get(room)), None)
        if room is None:
            row, room = len(rows), min(longest, padded_size(size, shortest))
            rows.append([])
            row_lengths.append(room)
        else:
            row = open_rows[room].pop()
        rows[row].append(number)
        if len(rows[row]) < segments:
            open_rows.setdefault(room - size, []).append(row)
            widest = max(widest, room - size)
    by_length: dict[int, list[list[int]]] = {}
    for length, row_of in zip(row_lengths, rows, strict=True):
        by_length.setdefault(length, []).append(row_of)
    return list(by_length.items())


def padded_size(size: int, least: int = 1) -> int:
    """Returns the power of two, at least `least`, that a size is padded to, so that few shapes are compiled."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def _row_count(rows: int, most: int) -> int:
    """Returns the smallest of `most`, `most` // 4, ... that is at least `rows`."""
    count = most
    while count // 4 >= rows:
        count //= 4
    return count


def _batch(sequences: Sequence[np.ndarray], rows: list[list[int]], length: int, count: int, pad_id: int) -> Batch:
    tokens = np.full((count, length), pad_id, np.int32)
    segment_ids = np.zeros((count, length), np.int32)
    located = []
    for row, members in enumerate(rows):
        start = 0
        for segment, number in enumerate(members, 1):
            end = start + len(sequences[number])
            tokens[row, start:end], segment_ids[row, start:end] = sequences[number], segment
            located.append((number, row, segment, start))
            start = end
    return Batch(tokens, segment_ids, *np.array(located, np.int64).reshape(-1, 4).T)
