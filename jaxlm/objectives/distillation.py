"""Distillation: a student learns the answers of a teacher beside the labels (arXiv 1503.02531)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.example_rows import SHORTEST_SEGMENT
from jaxlm.objectives.objective import Column, Sums
from jaxlm.objectives.sequences import SequenceObjective
from jaxlm.objectives.wrapped import Wrapped

OUTPUTS, STATES = "teacher_outputs", "teacher_states"  # columns of a batch, float32 [B, S, C] and [B, S, D]


class Distillation(Wrapped):
    """The loss of labels and that of the teacher's outputs, mixed by `share`, and `states_weight` times that of states.

    The loss of outputs is the divergence in nats of the student's probabilities from the teacher's, both at a
    temperature, times its square; of several labels, and of relevance, the mean over the outputs; of numbers, the
    squared difference. That of states is the squared distance between the pooled states that the two heads see,
    normalized to length 1 (arXiv 1908.09355).
    """

    def __init__(
        self, inner: SequenceObjective | Wrapped, share: float, temperature: float, states_weight: float
    ) -> None:
        super().__init__(inner)
        self.share, self.temperature, self.states_weight = share, temperature, states_weight

    @classmethod
    def from_task(cls, inner: SequenceObjective | Wrapped, task: Any) -> "Distillation":
        return cls(inner, task.teacher_share, task.teacher_temperature, task.teacher_states)

    def describe(self) -> str:
        return f"{self.inner.describe()} with a teacher"

    def columns(self, length: int) -> dict[str, Column]:
        slots = length // SHORTEST_SEGMENT
        found = {OUTPUTS: Column(np.float32, (slots, self.model.outputs))}
        if self.states_weight:
            found[STATES] = Column(np.float32, (slots, self.model.config.width))
        return {**self.inner.columns(length), **found}

    def losses(self, outputs: Array, states: Array, rows: Mapping[str, Array]) -> Sums:
        sums, weights = self.inner.losses(outputs, states, rows), rows["weights"]
        taught = (taught_losses(self.target, outputs, rows[OUTPUTS], self.temperature) * weights).sum()
        loss = (1 - self.share) * sums["loss"] + self.share * taught
        sums = sums | {"teacher_loss": taught}
        if self.states_weight:
            apart = (state_distances(states, rows[STATES]) * weights).sum()
            loss, sums = loss + self.states_weight * apart, sums | {"states_loss": apart}
        return sums | {"loss": loss}

    def report(self, totals: Any) -> dict[str, Array]:
        names = [name for name in ("teacher_loss", "states_loss") if name in totals]
        weight = jnp.maximum(totals["weight"], 1e-9)
        return self.inner.report(totals) | {name: totals[name] / weight for name in names}


def taught_losses(target: str, outputs: Array, teacher: Array, temperature: float) -> Array:
    """Returns the losses [...] of outputs [..., C] against those of the teacher, as Distillation says."""
    if target == "regression":
        return (outputs[..., 0] - teacher[..., 0]) ** 2
    ours, theirs = outputs / temperature, teacher / temperature
    if target in ("multi_label", "reranking"):
        wanted = jax.nn.sigmoid(theirs)
        yes = jax.nn.log_sigmoid(theirs) - jax.nn.log_sigmoid(ours)
        no = jax.nn.log_sigmoid(-theirs) - jax.nn.log_sigmoid(-ours)
        return temperature**2 * (wanted * yes + (1 - wanted) * no).mean(-1)
    ours, theirs = jax.nn.log_softmax(ours), jax.nn.log_softmax(theirs)
    return temperature**2 * (jnp.exp(theirs) * (theirs - ours)).sum(-1)


def state_distances(states: Array, teacher: Array) -> Array:
    """Returns the squared distances [...] of vectors [..., D], each normalized to length 1; 0 for those of length 0."""
    first, second = (x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12)) for x in (states, teacher))
    return ((first - second) ** 2).sum(-1)
