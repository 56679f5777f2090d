"""Labelled examples: the tokenized content of the files of a task, and the sets that a run makes of them.

What the rows of a file mean is the kind's business (data/tasks/); this file knows segments, their columns, and sets.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxlm.errors import UserError
from jaxlm.text.labelled import Row

WORD_STARTS = "word_starts"  # a detail: bool [n_i], where the words of a segment begin
SPLIT = "selection"  # the name of the part of the training set that selects the best checkpoint
_log = logging.getLogger("jaxlm")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Tokenized examples in the order of their file.

    An example is one or more segments that attend to themselves only: one text or pair, the choices of a question, the
    windows of a long text. `columns` has what belongs to a segment, `token_columns` what belongs to its tokens. A
    column "weights" is 0 where there is no label.
    """

    rows: Sequence[Row]  # of the file, one per example
    tokens: list[np.ndarray]  # of each segment, int32 [n_i]
    token_types: list[np.ndarray]  # likewise
    columns: Mapping[str, np.ndarray]  # [segments, ...]
    token_columns: Mapping[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)  # [n_i] each
    example: np.ndarray | None = None  # int64 [segments], the example of each, in order; None: one segment each
    truncated: int = 0  # how many examples lost tokens
    # One array for each segment that evaluations need, and the model does not see.
    details: Mapping[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def first(self) -> np.ndarray:
        """The first segment of each example, and the number of segments at the end: int64 [examples + 1]."""
        if self.example is None:
            return np.arange(len(self.tokens) + 1)
        return np.searchsorted(self.example, np.arange(len(self.rows) + 1))

    @functools.cached_property
    def longest(self) -> int:
        """The length of the longest segment."""
        return max((len(tokens) for tokens in self.tokens), default=0)

    def segments_of(self, examples: Sequence[int]) -> list[int]:
        """Returns the segments of examples, in order."""
        return [segment for number in examples for segment in range(self.first[number], self.first[number + 1])]

    def arrays(self) -> Iterator[np.ndarray]:
        """Yields everything that the model sees of the examples."""
        yield from self.tokens
        yield from self.token_types
        for name in sorted(self.columns):
            yield self.columns[name]
        for name in sorted(self.token_columns):
            yield from self.token_columns[name]


def split_by_hash(rows: Sequence[Row], identities: Sequence[str], fraction: float) -> tuple[list[Row], list[Row]]:
    """Returns the rows to train on, and about `fraction` of all that are kept for selection.

    A hash of each row's identity, such as its text, decides: equal texts are never on both sides, and rows that are
    added to the file move no other.
    """
    kept = [
        int.from_bytes(hashlib.sha256(identity.encode("utf-8", "replace")).digest()[:8]) < fraction * 2**64
        for identity in identities
    ]
    pairs = list(zip(rows, kept, strict=True))
    return [row for row, out in pairs if not out], [row for row, out in pairs if out]


def fingerprint(sets: Mapping[str, Examples], *settings: object) -> str:
    """Returns a hash of what the model sees of all sets, and of settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name in sorted(sets):
        digest.update(name.encode())
        for array in sets[name].arrays():
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def warn_of_truncation(name: str, examples: Examples, longest: int) -> None:
    """Logs how many examples of a set lost tokens, if any did."""
    if examples.truncated:
        _log.warning("%s: %s of %s examples are longer than %d tokens and are truncated", name,
                     f"{examples.truncated:,}", f"{len(examples):,}", longest)  # fmt: skip


def check_not_empty(train: Sequence[Row], selection: Sequence[Row], path: str) -> None:
    """Raises UserError if a split leaves nothing to train on or nothing to select by."""
    if not train or not selection:
        raise UserError(
            f"{path} has too few rows ({len(train) + len(selection)}) to keep a part of them for selection; name an"
            " evaluation set in evaluation.select, or set evaluation.select=none"
        )
