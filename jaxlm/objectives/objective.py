"""The interface of an objective: what one training step minimises, as a value.

`step.py` knows no task. Everything that differs between pretraining and fine-tuning (which arrays a batch holds, what
is masked or shifted, which loss is summed, which metrics are reported) is a method of an `Objective`. An objective is
one file in this folder, a frozen dataclass of pure functions, and a row in `objectives/table.py`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

from jaxlm.model.config import EncoderConfig

Params = dict[str, Any]
Sums = dict[str, Array]


class Column(NamedTuple):
    """One array of a batch: its dtype, its shape behind the batch dimension, and the range of its values.

    `low` and `high` (exclusive) bound the random values of a synthetic batch, which `bench` makes.
    """

    dtype: Any
    shape: tuple[int, ...]
    low: int = 0
    high: int = 2


def example_columns(encoder: EncoderConfig, length: int) -> dict[str, Column]:
    """Returns the columns that rows of packed labelled examples have in common."""
    return {
        "tokens": Column(np.int32, (length,), 5, encoder.vocab_size),
        "segment_ids": Column(np.int32, (length,)),
        "token_types": Column(np.int32, (length,), 0, 1),
    }


def draws_dropout(encoder: EncoderConfig) -> bool:
    """Returns whether an encoder draws dropout bits while it is trained."""
    return encoder.dropout > 0 or encoder.attention_dropout > 0


class Prepared(NamedTuple):
    """A global batch after `Objective.prepare`."""

    rows: Any  # tree of arrays [B, ...]: what `sums` takes, whole or a micro-batch at a time
    weight: Array  # float32 scalar: the summed loss of the whole batch is divided by it
    counts: Sums  # float32 or int32 scalars over the whole batch, for `report`


class Objective(Protocol):
    """What one training step minimises."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether the head gives vocabulary logits, as a masked-LM head does."""
        ...

    @property
    def additive(self) -> bool:
        """Whether losses add over rows, so that the step may compute a batch in micro-batches.

        If they do not, `sums` is called with the whole batch, and itself encodes it in `Phase.accumulate` chunks, as
        `objectives/segments.py` does.
        """
        ...

    @property
    def dropout(self) -> bool:
        """Whether the model draws dropout bits."""
        ...

    @property
    def counted(self) -> frozenset[str]:
        """The metrics that are summed over the steps of a log line; the others are averaged."""
        ...

    @property
    def evaluation_note(self) -> str:
        """What to know about evaluations while this objective is trained, in words; "" if there is nothing."""
        ...

    def describe(self) -> str:
        """Returns what is predicted, in words: two losses can be compared only if it is the same."""
        ...

    def columns(self, length: int) -> Mapping[str, Column]:
        """Returns the arrays of a batch of rows of `length` tokens; two of them are "tokens" and "segment_ids"."""
        ...

    def init(self, seed: int) -> Params:
        """Returns fresh parameters {"encoder": ..., "head": ...}, float32; pure, to be jitted with shardings.

        An objective without a head has "encoder" alone.
        """
        ...

    def inherit(self, params: Params) -> Params:
        """Returns those of the parameters of another model that this one starts from."""
        ...

    def knobs(self, progress: float) -> dict[str, float]:
        """Returns the scalars that change during a phase; `progress` is the completed fraction of the run."""
        ...

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        """Returns the batch ready for the loss. `keys` are typed PRNG keys [B], one per row of the global batch."""
        ...

    def sums(self, params: Params, rows: Any, dropout_seeds: Array | None) -> Sums:
        """Returns float32 sums over rows; "loss" is differentiated. dropout_seeds are uint32 [B, 2] or None."""
        ...

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the metrics of a step from its sums and counts."""
        ...

    def logits_memory(self, rows: int, length: int) -> int:
        """Returns the bytes of the logits that exist at once for a batch of rows [rows, length] on one device."""
        ...

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        """Returns the FLOPs of one step's matrix products, forward and backward; `tokens` are those without padding."""
        ...
