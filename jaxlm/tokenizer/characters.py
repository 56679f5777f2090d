"""Texts as arrays of code points, and the mapping from token offsets to visible characters."""

import functools
from collections.abc import Sequence

import numpy as np


def code_points(text: str) -> np.ndarray:
    """Returns the code points of a text, uint32 [n]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def is_space(codes: np.ndarray) -> np.ndarray:
    """Returns whether `str.isspace` is true for each code point, bool [n]."""
    return _space_table()[codes]


@functools.cache
def _space_table() -> np.ndarray:
    table = np.zeros(0x110000, bool)
    table[[code for code in range(0x3001) if chr(code).isspace()]] = True
    return table


def first_visible(begins: np.ndarray, invisible: np.ndarray) -> np.ndarray:
    """Returns the index of the first visible character at or after each of `begins`, int64 [n].

    `invisible` is bool, one per character of the text; the result is the length of the text where none follows.
    """
    visible = np.append(np.flatnonzero(~invisible), len(invisible))
    return visible[np.searchsorted(visible, begins)]


def end_of_visible(ends: np.ndarray, invisible: np.ndarray) -> np.ndarray:
    """Returns the index after the last visible character before each of `ends`, int64 [n]; 0 where there is none."""
    after = np.append(0, np.flatnonzero(~invisible) + 1)
    return after[np.searchsorted(after, ends, "right") - 1]


def decode_bytes(values: Sequence[int]) -> str:
    """Returns the text of UTF-8 bytes, with U+FFFD for what is not valid."""
    return bytes(values).decode("utf-8", "replace")
