"""What a setting is: its default, its meaning, and the values it accepts."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One setting: its default, its meaning, its type, and the choices or the interval of its values."""

    default: Any
    help: str
    choices: tuple = ()
    within: str = ""  # a key of INTERVALS
    kind: type | None = None  # the type, if the default is None
    item: type = str  # type of the entries of a tuple

    @property
    def type(self) -> type:
        return self.kind or type(self.default)


INTERVALS: dict[str, tuple[Callable[[float], bool], str]] = {
    ">=1": (lambda x: x >= 1, "must be at least 1"),
    ">=0": (lambda x: x >= 0, "must not be negative"),
    ">0": (lambda x: x > 0, "must be above 0"),
    ">1": (lambda x: x > 1, "must be above 1"),
    "(0,1)": (lambda x: 0 < x < 1, "must be between 0 and 1, for example 0.15"),
    "[0,1)": (lambda x: 0 <= x < 1, "must be at least 0 and below 1"),
    "[0,1]": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
    "(0,1]": (lambda x: 0 < x <= 1, "must be above 0 and at most 1"),
    "finite": (lambda x: abs(x) < float("inf"), "must be a finite number"),
}
