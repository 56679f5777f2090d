"""Typed reading of JSON objects from elsewhere: every value is checked for its type and range.

Checkpoints, tokenizers and records may have been written by other programs or damaged, so no value is trusted.
"""

from collections.abc import Iterable
from typing import Any

from jaxlm.errors import UserError

_REQUIRED: Any = object()
_LARGEST = 3.4e38  # of float32
KINDS: dict[type, str] = {  # of values in JSON
    int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "an object", list: "a list",
}  # fmt: skip


class Record:
    """A JSON object; each method returns the value of a key, or raises UserError that names the file and the key.

    A key that is missing or null has the default; without a default it is an error. `remedy` ends every message.
    """

    def __init__(self, where: Any, content: dict[str, Any], remedy: str = "fetch the file again") -> None:
        self.where, self.content, self._remedy = where, content, remedy

    def integer(self, key: str, default: Any = _REQUIRED, at_least: int = 0, at_most: int = 2**31 - 1) -> int:
        """Returns a whole number; 12.0 and true are none."""
        value = self._value(key, int, default)
        if value is not default and not at_least <= value <= at_most:
            raise self.error(key, f"expected a whole number from {at_least} to {at_most}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, at_least: float = 0.0) -> float:
        """Returns a finite number."""
        value = self._value(key, float, default)
        if value is not default and not at_least <= value <= _LARGEST:
            raise self.error(key, f"expected a finite number of at least {at_least:g}")
        return value

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        return self._value(key, bool, default)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self._value(key, str, default)

    def record(self, key: str, default: Any = _REQUIRED) -> "Record":
        """Returns an object inside this one; its messages name both keys."""
        return Record(f"{self.where}: {key}", self._value(key, dict, default), self._remedy)

    def items(self, key: str, kind: type, default: Any = _REQUIRED) -> list:
        """Returns a list, all items of which are of one kind."""
        values = self._value(key, list, default)
        for number, value in enumerate(values if values is not default else ()):
            if not is_kind(value, kind):
                raise UserError(
                    f"{self.where}: {key}, item {number}: {shown(value)}: expected {KINDS[kind]}; {self._remedy}"
                )
        return values

    def error(self, key: str, expected: str) -> UserError:
        return UserError(f"{self.where}: {cut(key)}={shown(self.content.get(key))}: {expected}; {self._remedy}")

    def _value(self, key: str, kind: type, default: Any) -> Any:
        value = self.content.get(key)
        if value is None:
            if default is _REQUIRED:
                raise UserError(f"{self.where} lacks {cut(key)}; {self._remedy}")
            return default
        if not is_kind(value, kind):
            raise self.error(key, f"expected {KINDS[kind]}")
        return value


def records(where: Any, values: list) -> list[Record]:
    """Returns the objects in a list from the file `where`. Raises UserError for an item that is none."""
    whole = Record(where, {"the list": values})
    return [Record(where, value) for value in whole.items("the list", dict)]


def is_kind(value: Any, kind: type) -> bool:
    """Returns whether a value of JSON is of a kind; true is no number, and a whole number may stand for a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def shown(value: Any) -> str:
    """Returns a value of JSON for a message, cut if it is long."""
    return cut(repr(value)) if not isinstance(value, int) or abs(value) < 10**60 else "a number of more than 60 digits"


def cut(text: str) -> str:
    """Returns a text for a message, cut to 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(count: int, one: str, several: str) -> str:
    """Returns a number with the words that agree with it, such as "1 row does" and "2 rows do"."""
    return f"{count:,} {one if count == 1 else several}"


def listed(values: Iterable[Any], most: int = 20) -> str:
    """Returns values for a message: the first `most`, each cut if it is long, and the number of the others."""
    texts = [cut(str(value)) for value in values]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")
