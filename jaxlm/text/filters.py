"""What is removed from texts, and the counts of it that are reported after reading."""

import re
from collections import Counter
from dataclasses import dataclass, field

from jaxlm.typed import counted

# The Unicode category Cc except tab, line feed and carriage return, and lone surrogates, which UTF-8 cannot encode.
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass
class Tally:
    """Counts of what was read from one path, and of what was dropped.

    `bytes` is the size of the documents in UTF-8; `cut` is the number of documents longer than
    data.max_document_characters; `dropped` maps a reason to a count; `places` maps a reason to the first three places,
    such as "FILE, line 3".
    """

    documents: int = 0
    bytes: int = 0
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1, place: str = "") -> None:
        """Adds `count` to what was dropped for `reason`, and records `place` if it is one of the first three."""
        self.dropped[reason] += count
        if place and len(self.places.setdefault(reason, [])) < 3:
            self.places[reason].append(place)


# What one of them is called.
_SINGULAR = {
    "control characters": "control character",
    "empty documents": "empty document",
    "rows with another number of fields": "row with another number of fields",
    "files that cannot be read as Python": "file that cannot be read as Python",
    "docstrings seen before": "docstring seen before",
    "duplicates": "duplicate",
    "documents of a held-out set": "document of a held-out set",
}


def dropped(count: int, reason: str) -> str:
    """Returns how many were dropped for a reason of `Tally.drop`, such as "1 duplicate"."""
    return counted(count, _SINGULAR.get(reason, reason), reason)


def drop_control_characters(text: str, tally: Tally) -> str:
    """Returns the text without control characters and lone surrogates, which are counted in `tally`."""
    text, count = _CONTROL_CHARACTERS.subn("", text)
    if count:
        tally.drop("control characters", count)
    return text
