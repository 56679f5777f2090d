"""Masked language modelling: predict the tokens that were hidden from the encoder (BERT, arXiv 1810.04805)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Phase
from jaxlm.data.facts import DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.model.heads import MaskedLM, init_params
from jaxlm.objectives.masking import MaskedTokens, Masking, make_masking, mask_tokens, prediction_slots
from jaxlm.objectives.objective import Column, Params, Prepared, Sums, draws_dropout
from jaxlm.objectives.predictions import sum_predictions, weighted_sums
from jaxlm.runtime.hardware import logits_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedLanguageModel:
    """The mean cross entropy of the masked tokens, in nats. The fraction that is masked may change during the run."""

    model: MaskedLM
    masking: Masking
    rate: float  # of a row's ordinary tokens that are predicted, when the run begins
    final_rate: float | None  # and when it ends; None: the same
    slots_rate: float  # the highest rate that a row must have room for
    logits_bytes: int
    token_counts: np.ndarray | None

    predicts_tokens: ClassVar[bool] = True
    additive: ClassVar[bool] = True
    counted: ClassVar[frozenset[str]] = frozenset({"dropped_words"})
    causal: ClassVar[bool] = False
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "MaskedLanguageModel":
        """Returns the objective of a phase."""
        return cls(
            model=MaskedLM(dataclasses.replace(encoder, rotary_base=phase.rotary_base), execution),
            masking=make_masking(config.masking, facts, encoder.vocab_size),
            rate=phase.mask_rate,
            final_rate=config.masking.final_rate,
            slots_rate=max(phase.mask_rate, config.masking.final_rate or 0),
            logits_bytes=logits_bytes(config.train.logits_megabytes),
            token_counts=facts.counts,
        )

    @property
    def dropout(self) -> bool:
        return draws_dropout(self.model.config)

    def describe(self) -> str:
        first, last = (f"{100 * self.knobs(progress)['mask_rate']:.3g}%" for progress in (0.0, 1.0))
        units = {"token": "", "whole_word": ", whole words", "span": ", spans"}
        rate = first if first == last else f"{first} to {last}"
        return f"{rate} of tokens masked{units[self.masking.scheme]}"

    def slots(self, length: int) -> int:
        """Returns P, the predictions that a row of `length` tokens has room for."""
        return prediction_slots(self.masking.scheme, self.slots_rate, length)

    def columns(self, length: int) -> dict[str, Column]:
        return {
            "tokens": Column(np.int32, (length,), len(self.masking.special_ids), self.masking.vocab_size),
            "segment_ids": Column(np.int32, (length,)),
            "word_starts": Column(np.bool_, (length,)),
        }

    def init(self, seed: int) -> Params:
        return init_params(self.model.config, seed, self.token_counts)

    def inherit(self, params: Params) -> Params:
        return {part: params[part] for part in ("encoder", "head") if part in params}

    def knobs(self, progress: float) -> dict[str, float]:
        last = self.final_rate
        return {"mask_rate": self.rate if last is None else self.rate + (last - self.rate) * progress}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        slots = self.slots(batch["tokens"].shape[1])
        masked = mask_tokens(
            keys, batch["tokens"], batch["segment_ids"], batch["word_starts"], knobs["mask_rate"], slots, self.masking
        )
        return self._prepared(masked, batch)

    def _prepared(self, masked: MaskedTokens, batch: Mapping[str, Array]) -> Prepared:
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        ordinary = jnp.isin(tokens, jnp.asarray(self.masking.special_ids), invert=True) & (segment_ids > 0)
        counts = {"ordinary_tokens": ordinary.sum(), "dropped_words": masked.dropped_words.sum()}
        return Prepared((masked, segment_ids), masked.weights.sum(), counts)

    def sums(self, params: Params, rows: tuple[MaskedTokens, Array], dropout_seeds: Array | None) -> Sums:
        masked, segment_ids = rows
        return sum_predictions(
            self.model, params, masked.inputs, segment_ids, masked.masked_positions, (masked.labels, masked.weights),
            weighted_sums, self.logits_bytes, dropout_seeds=dropout_seeds, causal=self.causal,
        )  # fmt: skip

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        predictions = totals["predictions"]
        return {
            "loss": totals["loss"] / jnp.maximum(predictions, 1),
            "accuracy": totals["correct"] / jnp.maximum(predictions, 1),
            "masked_share": predictions / jnp.maximum(totals["ordinary_tokens"], 1),
            "dropped_words": totals["dropped_words"],
        }

    def logits_memory(self, rows: int, length: int) -> int:
        return min(rows * self.slots(length) * self.model.config.vocab_size * 4, self.logits_bytes)

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, int(knobs["mask_rate"] * tokens))
