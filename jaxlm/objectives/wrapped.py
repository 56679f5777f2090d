"""Objectives around the objective of classes and numbers: another loss, and all else as it was."""

from typing import Any

from jax import Array

from jaxlm.objectives.objective import Params, Sums
from jaxlm.objectives.sequences import SequenceObjective


class Wrapped:
    """An objective whose methods are those of `inner`, except for what a subclass defines.

    `forward` runs the model, and `losses` makes sums of what it returns; a subclass changes one of them, or `sums`.
    """

    def __init__(self, inner: "SequenceObjective | Wrapped") -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sums(self, params: Params, rows: Any, dropout_seeds: Array | None) -> Sums:
        return self.losses(*self.inner.forward(params, rows, dropout_seeds), rows)
