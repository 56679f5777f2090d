"""Templates: the texts of a row inside a fixed text with one mask, such as "{sentence} It was [MASK]."."""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.text_encoder import EncodedTexts, truncated_sizes
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer

MASK = "[MASK]"  # the mask in a template, whatever the tokenizer calls its own


class Template(NamedTuple):
    """A parsed template: literal[0], fields[0], literal[1], fields[1], ..., literal[-1]."""

    literals: tuple[str, ...]  # fixed text, one more than fields; may be empty
    fields: tuple[str, ...]  # columns whose text is filled in; one may occur twice

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once, in the order of their first field."""
        return tuple(dict.fromkeys(self.fields))

    def before_mask(self, tokenizer: Tokenizer) -> str:
        """Returns the fixed text between the mask and the field before it.

        Raises UserError unless the template has one mask, written [MASK] or as the tokenizer's own.
        """
        literals = self._with_mask_of(tokenizer).literals
        count = sum(literal.count(tokenizer.mask_token) for literal in literals)
        if count != 1:
            own = "" if tokenizer.mask_token == MASK else f", or {tokenizer.mask_token} as in this vocabulary"
            raise UserError(
                f"task.template has {count or 'no'} masks, and needs one: write {MASK}{own} where the word of a label"
                " is to be predicted"
            )
        return next(literal for literal in literals if tokenizer.mask_token in literal).split(tokenizer.mask_token)[0]

    def _with_mask_of(self, tokenizer: Tokenizer) -> "Template":
        return self._replace(literals=tuple(x.replace(MASK, tokenizer.mask_token) for x in self.literals))


def parse_template(text: str) -> Template:
    """Returns a template whose fields are columns in braces; {{ and }} are braces. Raises UserError."""
    literals, fields = [""], list[str]()
    for piece in re.split(r"(\{\{|\}\}|\{[^{}]*\}|[{}])", text):
        if piece in ("{{", "}}"):
            literals[-1] += piece[0]
        elif piece in ("{", "}"):
            raise UserError(
                f"task.template={text}: a brace without its other half; write a column as {{name}}, and a brace"
                " of the text as {{ or }}"
            )
        elif piece.startswith("{"):
            if not piece[1:-1].strip():
                raise UserError(f"task.template={text}: {piece} names no column; write one, such as {{sentence}}")
            fields.append(piece[1:-1].strip())
            literals.append("")
        else:
            literals[-1] += piece
    if not fields:
        raise UserError(
            f"task.template={text}: names no column with a text; write it in braces, as in {{sentence}} It was {MASK}."
        )
    return Template(tuple(literals), tuple(fields))


@dataclasses.dataclass(frozen=True, eq=False)
class TemplateEncoder:
    """Encodes the filled template of each row: begin, the tokens of the whole text as Transformers has them, end.

    Special tokens are found in the template, not in the texts of a row. A row longer than `longest` tokens loses tokens
    of its texts, as the `truncation` of `TextEncoder` says, where the first field is the first text; the template stays
    whole. White space around a text is removed.
    """

    template: Template
    tokenizer: Tokenizer
    longest: int
    truncation: str = "longest_first"

    def __call__(self, texts: Sequence[Sequence[str]], places: Sequence[str]) -> EncodedTexts:
        """Returns the sequences of rows with one text for each of `template.columns`; `places` name them in messages.

        Raises UserError.
        """
        self.template.before_mask(self.tokenizer)
        rows = [self._encoded(row, place) for row, place in zip(texts, places, strict=True)]
        tokens = [row for row, _ in rows]
        types, starts = [np.zeros_like(row) for row in tokens], [np.zeros(len(row), bool) for row in tokens]
        return EncodedTexts(tokens, types, starts, np.array([cut for _, cut in rows], bool))

    def _encoded(self, texts: Sequence[str], place: str) -> tuple[np.ndarray, bool]:
        """Returns the tokens of a row, and whether it lost some."""
        template = self.template._with_mask_of(self.tokenizer)
        by_column = dict(zip(template.columns, (text.strip() for text in texts), strict=True))
        parts = [template.literals[0]]  # those with an odd number are texts of the row
        for field, literal in zip(template.fields, template.literals[1:], strict=True):
            parts += [by_column[field], literal]
        ends = np.cumsum([len(part) for part in parts])
        fixed = [(end - len(part), end) for part, end in zip(parts[::2], ends[::2].tolist(), strict=True)]
        ids, offsets = self.tokenizer.encode_with_offsets("".join(parts), find_special=True, within=fixed)
        part_of = np.searchsorted(ends, offsets[:, 0], side="right")  # a token belongs to the part where it begins
        part_of = np.minimum(part_of, len(parts) - 1)
        sizes = [int((part_of == number).sum()) for number in range(1, len(parts), 2)]
        room = self.longest - 2 - (len(ids) - sum(sizes))
        cut = truncated_sizes(sizes, room, self.truncation) if room >= 0 else None
        if cut is None or (any(sizes) and not any(cut)):
            raise UserError(self._too_long(place, len(ids) + 2, self.longest - room))
        kept = np.ones(len(ids), bool)
        for number, size in enumerate(cut):
            kept[np.flatnonzero(part_of == 2 * number + 1)[size:]] = False
        tokens = [self.tokenizer.begin_id, *ids[kept].tolist(), self.tokenizer.end_id]
        return np.array(tokens, np.int32), cut != sizes

    def _too_long(self, place: str, size: int, fixed: int) -> str:
        if fixed >= self.longest:
            return (
                f"task.template has {fixed} tokens without the texts of a row, which leaves them no room in the"
                f" {self.longest} of data.sequence_length; shorten it, or raise data.sequence_length"
            )
        return (
            f"{place}: {size} tokens with the template, but at most {self.longest} fit; shorten it, raise"
            " data.sequence_length, or set task.truncation=longest_first"
        )
