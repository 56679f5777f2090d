"""Which documents were seen before, and which text trains the tokenizer: both by hashes, in bounded memory."""

import hashlib
import heapq
from array import array
from collections.abc import Iterator

from jaxlm.text.splitting import cut_text

SAMPLE_PIECE_CHARACTERS = 10_000


def hashes_of(text: str) -> tuple[int, int, int]:
    """Returns three independent 64-bit hashes of a text, the same on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=24).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16]), int.from_bytes(digest[16:])


class Hashes:
    """A set of 64-bit numbers in 12 to 24 bytes each: open addressing in one array, zero for a free place."""

    def __init__(self) -> None:
        self.table = array("Q", bytes(8 * 1024))
        self.count = 0

    def add(self, key: int) -> bool:
        """Returns whether the number is new."""
        place = self._place(key)
        if self.table[place]:
            return False
        self.table[place] = key or 1
        self.count += 1
        if 3 * self.count > 2 * len(self.table):
            old, self.table = self.table, array("Q", bytes(16 * len(self.table)))
            for other in old:
                if other:
                    self.table[self._place(other)] = other
        return True

    def __contains__(self, key: int) -> bool:
        return self.table[self._place(key)] != 0

    def _place(self, key: int) -> int:
        key = key or 1
        mask = len(self.table) - 1
        place = key & mask
        while self.table[place] not in (0, key):
            place = (place + 1) & mask
        return place


class Sample:
    """Text for the tokenizer, about `size` bytes of UTF-8: the pieces of documents with the smallest hashes.

    So each piece of the text has the same chance, wherever it stands, and all of a text that fits is taken.
    """

    def __init__(self, size: int) -> None:
        self.size, self.bytes, self.limit, self.number = size, 0, 2**64, 0
        self.heap: list[tuple[int, int, bytes]] = []  # (minus the hash, order of arrival, piece)

    def offer(self, text: str, key: int) -> None:
        """Takes what belongs into the sample of a document whose hash is `key`."""
        for number, piece in enumerate(cut_text(text, SAMPLE_PIECE_CHARACTERS)):
            if number:
                key = int.from_bytes(hashlib.blake2b(key.to_bytes(8), digest_size=8).digest())
            self.take(piece, key)

    def take(self, piece: str, key: int) -> None:
        """Takes a piece whose hash is `key`, if it belongs into the sample."""
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
        """Yields the sample in the order of the text."""
        for _, _, content in sorted(self.heap, key=lambda entry: entry[1]):
            yield content.decode()
