"""Learn vectors of texts whose cosine says what belongs together."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import Phase
from jaxlm.data.example_rows import SHORTEST_SEGMENT
from jaxlm.data.facts import DataFacts
from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.model.task_model import EmbeddingModel
from jaxlm.objectives.contrastive import contrastive_losses, cosent_loss, cosines
from jaxlm.objectives.objective import Column, Params, Prepared, Sums, draws_dropout, example_columns
from jaxlm.objectives.segments import by_example, encode_in_chunks

INPUTS = ("tokens", "segment_ids", "token_types")


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingObjective:
    """The mean loss of the examples of a batch, over all devices, averaged over `dimensions`.

    `loss` is task.loss: "contrastive" in nats, "cosent", or "cosine_mse", the squared error of the cosine.
    """

    model: EmbeddingModel
    loss: str
    examples: int  # of a batch
    texts: int  # of an example: anchor, positive, hard negatives
    dimensions: tuple[int, ...]  # whose vectors are trained, ascending; the last is the model's width
    temperature: float
    symmetric: bool
    chunks: int  # parts in which a batch is encoded

    predicts_tokens: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    counted: ClassVar[frozenset[str]] = frozenset()
    evaluation_note: ClassVar[str] = ""

    @classmethod
    def from_config(
        cls, config: Any, phase: Phase, encoder: EncoderConfig, execution: Execution, facts: DataFacts
    ) -> "EmbeddingObjective":
        """Returns the objective of a phase. Raises UserError for dimensions that the model does not have."""
        encoder, task = dataclasses.replace(encoder, rotary_base=phase.rotary_base), config.task
        if wrong := [size for size in task.dimensions if not 1 <= size <= encoder.width]:
            raise UserError(f"task.dimensions={wrong[0]}: must be from 1 to {encoder.width}, the width of the model")
        dimensions = tuple(sorted({*task.dimensions, encoder.width}))
        model = EmbeddingModel(encoder, execution, embedding_pooling(task))
        return cls(
            model, task.loss, phase.batch_size, 2 + len(task.negatives), dimensions, task.temperature, task.symmetric,
            phase.accumulate,
        )  # fmt: skip

    @property
    def dropout(self) -> bool:
        return draws_dropout(self.model.config)

    def describe(self) -> str:
        sizes = f" of the first {', '.join(map(str, self.dimensions))} dimensions" if len(self.dimensions) > 1 else ""
        return f"{self.loss} loss{sizes}, {self.examples} examples"

    def columns(self, length: int) -> dict[str, Column]:
        slots = length // SHORTEST_SEGMENT
        of_pairs = {"labels": Column(np.float32, (slots,)), "weights": Column(np.float32, (slots,), 1, 2)}
        return {
            **example_columns(self.model.config, length),
            "examples": Column(np.int32, (slots,), 0, self.examples),
            "role": Column(np.int32, (slots,), 0, self.texts),
            "text": Column(np.int32, (slots,), 0, 1000),
        } | (of_pairs if self.loss != "contrastive" else {})

    def init(self, seed: int) -> Params:
        tokens = jnp.zeros((1, 2 * SHORTEST_SEGMENT), jnp.int32)
        return self.model.init(jax.random.key(seed), tokens, tokens, tokens, 2)["params"]

    def inherit(self, params: Params) -> Params:
        return {"encoder": params["encoder"]}

    def knobs(self, progress: float) -> dict[str, float]:
        return {}

    def prepare(self, batch: Mapping[str, Array], keys: Array, knobs: Mapping[str, Array]) -> Prepared:
        anchors = (batch["examples"] >= 0) & (batch["role"] == 0)
        known = batch["weights"] > 0 if "weights" in batch else True
        return Prepared(dict(batch), (anchors & known).sum().astype(jnp.float32), {})

    def outputs(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None = None) -> Array:
        """Returns the vectors float32 [B, S, D]: for each row those of segments 1 to S, zero where it has fewer."""
        slots = rows["role"].shape[1]
        return self.model.apply({"params": params}, *(rows[name] for name in INPUTS), slots, dropout_seeds)  # type: ignore[return-value]

    def sums(self, params: Params, rows: Mapping[str, Array], dropout_seeds: Array | None) -> Sums:
        inputs = {name: rows[name] for name in (*INPUTS, "role")}
        vectors = encode_in_chunks(functools.partial(self.outputs, params), inputs, dropout_seeds, self.chunks)
        ordered = functools.partial(
            by_example, examples=rows["examples"], roles=rows["role"], count=self.examples, size=self.texts
        )
        vectors, exists = ordered(vectors)
        if self.loss == "contrastive":
            weights = exists[:, 0] & exists[:, 1]
            texts, _ = ordered(rows["text"])
            # The same order of dimensions whatever the order of the setting, so that rounding is the same too.
            losses, nearest = zip(*(
                contrastive_losses(vectors[..., :size], texts, exists, self.temperature, self.symmetric)
                for size in self.dimensions
            ), strict=True)  # fmt: skip
            total = jnp.where(weights, jnp.stack(losses).mean(0), 0).sum()
            correct = {"correct": (nearest[-1] & weights).sum().astype(jnp.float32)}
        else:
            wanted, known = (ordered(rows[name])[0][:, 0] for name in ("labels", "weights"))
            weights = (known > 0) & exists[:, 0] & exists[:, 1]
            errors = jnp.stack([self._error(vectors[..., :size], wanted, weights) for size in self.dimensions])
            total, correct = errors.mean(), {}
        return {"loss": total, "weight": weights.sum().astype(jnp.float32)} | correct

    def _error(self, vectors: Array, wanted: Array, known: Array) -> Array:
        """Returns the loss of vectors [U, 2, D] times the number of known similarities."""
        found = cosines(vectors)
        if self.loss == "cosent":
            return cosent_loss(found, wanted, known, self.temperature) * known.sum()
        return jnp.where(known, jnp.square(found - wanted), 0).sum()

    def report(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        weight = jnp.maximum(totals["weight"], 1)
        accuracy = {"accuracy": totals["correct"] / weight} if "correct" in totals else {}
        return {"loss": totals["loss"] / weight} | accuracy

    def logits_memory(self, rows: int, length: int) -> int:
        return self.examples**2 * (self.texts - 1) * 4 * len(self.dimensions)

    def flops(self, batch_size: int, length: int, tokens: int, knobs: Mapping[str, float]) -> float:
        return training_flops(self.model.config, batch_size, length, 0)


def embedding_pooling(task: Any) -> str:
    """Returns how the states of a text become its vector; `task` is that section of the config."""
    return "mean" if task.pooling == "auto" else task.pooling
