"""R-Drop (arXiv 2106.14448): each step runs the model twice with different dropout, and the answers should agree."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.errors import UserError
from jaxlm.objectives.objective import Params, Sums
from jaxlm.objectives.sequences import SequenceObjective
from jaxlm.objectives.wrapped import Wrapped


class RDrop(Wrapped):
    """The mean loss of two passes, plus weight / 2 times their divergence.

    This is half of the paper's loss with its alpha = `weight`, so that the loss of labels counts as without R-Drop. The
    divergence is the mean of the two directions of Kullback and Leibler, in nats; of several labels, their mean; of
    numbers, the squared difference.
    """

    def __init__(self, inner: SequenceObjective | Wrapped, weight: float) -> None:
        super().__init__(inner)
        self.weight = weight

    @classmethod
    def from_task(cls, inner: SequenceObjective | Wrapped, task: Any) -> "RDrop":
        """Returns what section `task` says. Raises UserError if the model has no dropout."""
        if not inner.dropout:
            raise UserError(
                f"task.r_drop={task.r_drop:g} compares two passes with different dropout, and there is none: set"
                " model.dropout, or task.r_drop=0"
            )
        return cls(inner, task.r_drop)

    def describe(self) -> str:
        return f"{self.inner.describe()} with R-Drop"

    def sums(self, params: Params, rows: Any, dropout_seeds: Array | None) -> Sums:
        assert dropout_seeds is not None
        passes = [self.inner.forward(params, rows, seeds_of_pass(dropout_seeds, number)) for number in (0, 1)]
        both = [self.inner.losses(outputs, states, rows) for outputs, states in passes]
        sums = jax.tree.map(lambda first, second: (first + second) / 2, *both)
        divergences = divergence(self.target, *(outputs for outputs, _ in passes))
        total = (divergences * rows["weights"]).sum()
        return sums | {"loss": sums["loss"] + self.weight / 2 * total, "divergence": total}

    def report(self, totals: Any) -> dict[str, Array]:
        mean = totals["divergence"] / jnp.maximum(totals["weight"], 1e-9)
        return self.inner.report(totals) | {"divergence": mean}

    def flops(self, *arguments: Any) -> float:
        return 2 * self.inner.flops(*arguments)


def seeds_of_pass(seeds: Array, number: int) -> Array:
    """Returns the dropout seeds uint32 [B, 2] of a pass over the same rows; those of pass 0 are `seeds`."""
    if number == 0:
        return seeds

    def fold(seed: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), number), (2,))

    return jax.vmap(fold)(seeds)


def divergence(target: str, first: Array, second: Array) -> Array:
    """Returns how much two outputs [..., C] differ, as RDrop says, [...]."""
    if target == "regression":
        return (first[..., 0] - second[..., 0]) ** 2
    # Both directions together are sum (p - q) (log p - log q), in which what normalizes the logits cancels.
    if target in ("multi_label", "reranking"):
        return ((jax.nn.sigmoid(first) - jax.nn.sigmoid(second)) * (first - second)).mean(-1) / 2
    return ((jax.nn.softmax(first) - jax.nn.softmax(second)) * (first - second)).sum(-1) / 2
