"""Predict the first and the last token of an answer in each window of packed rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Phase
from jaxlm.data.example_rows import SHORTEST_SEGMENT
from jaxlm.data.facts import DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.model.task_model import SPAN_HEADS, TokenModel, family_style
from jaxlm.objectives.inheritance import inherited
from jaxlm.objectives.objective import Column, Params, Prepared, Sums, draws_dropout, example_columns

LOWEST = -1e30  # the logit of tokens that cannot be chosen; finite, so that rows with fewer segments give no NaN


@dataclasses.dataclass(frozen=True, eq=False)
class SpanObjective:
    """The mean cross entropy of the first and the last token among the tokens of a window, in nats (arXiv 1810.04805).

    A window without the answer points to its first token.
    """

    model: TokenModel

    predicts_tokens: ClassVar[bool] = False
    additive: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "SpanObjective":
        """Returns the objective of a phase."""
        encoder, task = dataclasses.replace(encoder, rotary_base=phase.rotary_base), config.task
        rate = encoder.dropout if task.dropout is None else task.dropout
        style = SPAN_HEADS[family_style(encoder) if task.head == "auto" else task.head]
        return cls(TokenModel(encoder, execution, 2, style, rate))

    @property
    def dropout(self) -> bool:
        return draws_dropout(self.model.config) or (self.model.style.dropout and self.model.rate > 0)

    def describe(self) -> str:
        return "spans"

    def columns(self, length: int) -> dict[str, Column]:
        slots = length // SHORTEST_SEGMENT
        return {
            **example_columns(self.model.config, length),
            "examples": Column(np.int32, (slots,)),
            "spans": Column(np.int32, (slots, 2), 0, SHORTEST_SEGMENT),
            "weights": Column(np.float32, (slots,), 1, 2),
        }

    def init(self, seed: int) -> Params:
        tokens = jnp.zeros((1, 2 * SHORTEST_SEGMENT), jnp.int32)
        return self.model.init(jax.random.key(seed), tokens, tokens, tokens)["params"]

    def inherit(self, params: Params) -> Params:
        return inherited(params, self.model.style)

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        return Prepared(dict(batch), batch["weights"].sum(), {})

    def outputs(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns the logits that an answer begins, and that it ends, with each token: float32 [B, L, 2]."""
        return self.model.apply(
            {"params": params}, rows["tokens"], rows["segment_ids"], rows["token_types"], dropout_seeds
        )  # type: ignore[return-value]

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        logits, weights = self.outputs(params, rows, dropout_seeds), rows["weights"]
        losses, correct = span_cross_entropy(logits, rows["segment_ids"], rows["spans"])
        known = (weights > 0).astype(jnp.float32)
        return {
            "loss": (losses * weights).sum(), "weight": weights.sum(),
            "correct": (correct * known).sum(), "windows": known.sum(),
        }  # fmt: skip

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "loss": totals["loss"] / jnp.maximum(totals["weight"], 1e-9),
            "accuracy": totals["correct"] / jnp.maximum(totals["windows"], 1),
        }

    def logits_memory(self, rows: int, length: int) -> int:
        return rows * (length // SHORTEST_SEGMENT) * length * 2 * 4

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, 0)


def span_cross_entropy(logits: Array, segment_ids: Array, spans: Array) -> tuple[Array, Array]:
    """Returns the loss of each segment in nats, and whether both tokens are right, float32 and bool [B, S].

    logits are float32 [B, L, 2], segment_ids int32 [B, L], spans int32 [B, S, 2]: the first and the last token of the
    answer, counted from the begin of the segment. The loss is the mean of both cross entropies, each over the tokens of
    the segment alone. Where a row has fewer segments, values have no meaning but are finite.
    """
    belongs = segment_ids[:, None] == jnp.arange(1, spans.shape[1] + 1)[:, None]  # [B, S, L]
    of_row = jnp.moveaxis(logits, 2, 1)  # [B, 2, L]
    of_segment = jnp.where(belongs[:, :, None], of_row[:, None], LOWEST)  # [B, S, 2, L]
    wanted = belongs.argmax(-1)[..., None] + spans  # [B, S, 2]
    chosen = jnp.take_along_axis(of_row, jnp.moveaxis(wanted, 2, 1), axis=2, mode="clip")  # [B, 2, S]
    losses = jax.nn.logsumexp(of_segment, -1) - jnp.moveaxis(chosen, 1, 2)
    return losses.mean(-1), (of_segment.argmax(-1) == wanted).all(-1)
