"""Splits the text of a file into documents: at lines, at blank lines, or where a document is too long.

Text arrives in blocks of any size, so that memory stays bounded. The functions here yield pieces of documents, and None
at the end of each document; the result does not depend on where one block ends and the next begins.
"""

from collections.abc import Iterable, Iterator

from jaxlm.text.filters import Tally

_MAX_INDENT_CHARACTERS = 2**20  # of white space before a paragraph's line; bounds memory on a file of white space


def split_documents(blocks: Iterable[str], document: str) -> Iterator[str | None]:
    """Yields the pieces of the documents in a text, and None at the end of each document.

    `document` is "file", "paragraph" (separated by lines that are empty or white space) or "line".
    """
    if document == "line":
        yield from _split_lines(blocks)
    elif document == "paragraph":
        yield from _split_paragraphs(blocks)
    else:
        yield from blocks
        yield None


def _split_lines(blocks: Iterable[str]) -> Iterator[str | None]:
    open_line = False
    for block in blocks:
        for number, piece in enumerate(block.split("\n")):
            if number:
                yield None
                open_line = False
            if piece:
                yield piece
                open_line = True
    if open_line:
        yield None


def _split_paragraphs(blocks: Iterable[str]) -> Iterator[str | None]:
    # White space that is not yet yielded; whether the current line is blank so far; whether a paragraph is open.
    held, blank, inside = "", True, False
    for block in blocks:
        for number, piece in enumerate(block.split("\n")):
            if number:
                if blank and inside:
                    yield None
                held, inside, blank = "" if blank else "\n", inside and not blank, True
            if blank and (not piece or piece.isspace()):
                held = (held + piece)[-_MAX_INDENT_CHARACTERS:]
            elif piece:
                yield held + piece
                held, inside, blank = "", True, False
    if inside:
        yield None


def join_documents(pieces: Iterable[str | None], limit: int, tally: Tally) -> Iterator[str]:
    """Yields documents joined from their pieces; a document longer than `limit` characters becomes several.

    Documents that are split in this way are counted in `tally.cut`.
    """
    held: list[str] = []
    length, was_cut = 0, False
    for piece in pieces:
        if piece is None:
            yield "".join(held)
            held, length, was_cut = [], 0, False
            continue
        held.append(piece)
        length += len(piece)
        if length > limit:
            tally.cut += not was_cut
            was_cut = True
            *complete, rest = cut_text("".join(held), limit)
            yield from complete
            held, length = [rest], len(rest)


def cut_text(text: str, limit: int) -> list[str]:
    """Returns a text in pieces of at most `limit` characters, cut after white space if there is some near the end."""
    pieces, start = [], 0
    while len(text) - start > limit:
        end = _cut_position(text, start, limit)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _cut_position(text: str, start: int, limit: int) -> int:
    end = start + limit
    if text[end].isspace():
        return end
    for i in range(end - 1, max(start, end - max(limit // 10, 100)) - 1, -1):
        if text[i].isspace():
            return i + 1
    return end
