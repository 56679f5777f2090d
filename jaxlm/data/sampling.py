"""Duplicate detection, and the sample of text that trains the tokenizer: both from hashes, in bounded memory."""

import hashlib
import heapq
from array import array
from collections.abc import Iterator

from jaxlm.text.splitting import cut_text

SAMPLE_PIECE_CHARACTERS = 10_000


def hashes_of(text: str) -> tuple[int, int, int]:
    """Returns three independent 64-bit hashes of a text, which are the same on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=24).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16]), int.from_bytes(digest[16:])


class Hashes:
    """A set of 64-bit numbers that takes 12 to 24 bytes for each: open addressing in one array, 0 for a free slot."""

    def __init__(self) -> None:
        self.table = array("Q", bytes(8 * 1024))
        self.count = 0

    def add(self, key: int) -> bool:
        """Adds a number and returns whether it is new."""
        slot = self._slot(key)
        if self.table[slot]:
            return False
        self.table[slot] = key or 1
        self.count += 1
        if 3 * self.count > 2 * len(self.table):
            old, self.table = self.table, array("Q", bytes(16 * len(self.table)))
            for other in old:
                if other:
                    self.table[self._slot(other)] = other
        return True

    def __contains__(self, key: int) -> bool:
        return self.table[self._slot(key)] != 0

    def _slot(self, key: int) -> int:
        key = key or 1  # 0 marks a free slot
        mask = len(self.table) - 1
        slot = key & mask
        while self.table[slot] not in (0, key):
            slot = (slot + 1) & mask
        return slot


class Sample:
    """Text to train the tokenizer on: the pieces of documents with the smallest hashes, up to `size` bytes of UTF-8.

    Each piece is equally likely to be in the sample, wherever it occurs in the text. A text that fits is in it whole.
    """

    def __init__(self, size: int) -> None:
        self.size, self.bytes, self.limit, self.number = size, 0, 2**64, 0
        self.heap: list[tuple[int, int, bytes]] = []  # (negative hash, order of arrival, piece)

    def offer(self, text: str, key: int) -> None:
        """Adds those pieces of a document that belong in the sample; `key` is the document's hash."""
        for number, piece in enumerate(cut_text(text, SAMPLE_PIECE_CHARACTERS)):
            if number:
                key = int.from_bytes(hashlib.blake2b(key.to_bytes(8), digest_size=8).digest())
            self.take(piece, key)

    def take(self, piece: str, key: int) -> None:
        """Adds a piece with hash `key` if it belongs in the sample, and removes those that no longer do."""
        if key >= self.limit:
            return
        self.number += 1
        content = piece.encode()
        heapq.heappush(self.heap, (-key, self.number, content))
        self.bytes += len(content)
        while self.bytes > self.size and len(self.heap) > 1:
            largest, _, content = heapq.heappop(self.heap)
            self.limit = -largest
            self.bytes -= len(content)

    def texts(self) -> Iterator[str]:
        """Yields the pieces of the sample in the order of the text."""
        for _, _, content in sorted(self.heap, key=lambda entry: entry[1]):
            yield content.decode()
