"""Tag schemes: which tags spell entities, and which entities the tags of a sentence spell."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
# The prefixes of tags by scheme; the rest of a tag, after "-", is the type of the entity.
PREFIXES = {"bio": "BI", "iob2": "BI", "iobes": "BIES"}
DESCRIPTIONS = {
    "bio": "BIO, seqeval's default mode",
    "iob2": "IOB2, seqeval's strict mode",
    "iobes": "IOBES, seqeval's default mode",
    "none": "no scheme: each word counts as an entity",
}


class Entity(NamedTuple):
    """An entity of a sentence: its type, and its first and last word, from 0."""

    type: str
    first: int
    last: int


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Returns the entities that the tags of a sentence spell, in order.

    With bio and iobes they are those of seqeval's default mode, and so of the CoNLL-2000 script conlleval; with iob2
    those of seqeval's strict mode with that scheme.
    """
    if scheme == "none":
        return [Entity(tag, number, number) for number, tag in enumerate(tags)]
    found: list[Entity] = []
    first: int | None = None  # of the entity that is under way
    before, type_before = OUTSIDE, "_"
    for number, tag in enumerate([*tags, OUTSIDE]):
        prefix, type_ = tag[:1], type_of(tag)
        continues = before in ("B", "I") and prefix in ("I", "E") and type_ == type_before
        if first is not None and not continues:
            found.append(Entity(type_before, first, number - 1))
            first = None
        if prefix != OUTSIDE and not continues and (prefix == "B" or scheme != "iob2"):
            first = number
        # In strict mode, what follows an I- that begins nothing continues nothing.
        before, type_before = (OUTSIDE, "_") if first is None else (prefix, type_)
    return found


def type_of(tag: str) -> str:
    """Returns the type of the entity that a tag belongs to; "_" if it names none."""
    return tag[1:].split("-", maxsplit=1)[-1] or "_"


def misplaced(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """Returns the first word whose tag a scheme does not allow, and why; None if there is none."""
    if scheme == "none":
        number = next((number for number, tag in enumerate(tags) if not tag), None)
        return None if number is None else (number, "is empty")
    allowed = re.compile(rf"{OUTSIDE}|[{PREFIXES[scheme]}](-.+)?", re.DOTALL)
    before = OUTSIDE
    for number, tag in enumerate(tags):
        if not allowed.fullmatch(tag):
            shown = ", ".join(f"{prefix}-TYPE" for prefix in PREFIXES[scheme])
            return number, f"is not one of {scheme}, whose tags are {OUTSIDE}, {shown}"
        if scheme == "iob2" and tag[0] == "I" and (before == OUTSIDE or type_of(before) != type_of(tag)):
            return number, f"continues no entity, and in iob2 an entity begins with B-{type_of(tag)}"
        before = tag
    return None


def completed(tags: Iterable[str], scheme: str) -> tuple[str, ...]:
    """Returns the tags in alphabetical order, with those that a scheme has for the same types, and O.

    Other sets of the task may have them: a rare type may begin, but never go on, in the training set.
    """
    found = set(tags)
    if scheme != "none":
        rests = {tag[1:] for tag in found if tag != OUTSIDE}
        found |= {prefix + rest for prefix in PREFIXES[scheme] for rest in rests} | {OUTSIDE}
    return tuple(sorted(found))
