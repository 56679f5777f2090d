"""What a training step does with gradients, as a value: an optimizer, and what goes on around it.

A run without averaging and pruning has the optimizer's own state. The others wrap an update and keep its state in
theirs, so that all of it is saved, resumed and sharded with the optimizer state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlm.optimizer.optimizers import drop_frozen

AVERAGE_WARMUP = 10  # updates


class Moment(NamedTuple):
    """When an update happens: scalars."""

    step: Array  # int32, the number of updates before it
    share: Array  # float32, the share of the run that is completed with it


class Update(NamedTuple):
    """How a step changes the parameters.

    `apply` takes (gradients, state, params, learning rate, Moment) and returns new (params, state). `weights` are the
    parameters to take gradients at; those in `params` are evaluated and exported.
    """

    init: Callable[[Any], Any]  # params -> state
    apply: Callable[[Any, Any, Any, Array, Moment], tuple[Any, Any]]
    weights: Callable[[Any, Any], Any] = lambda params, state: params  # (params, state) -> params
    metrics: Callable[[Any], dict[str, Array]] = lambda state: {}  # of a state, for the log
    notes: tuple[str, ...] = ()  # for the log at the start of a run
    complete_from: float = 0.0  # share of the run after which the parameters are as wanted, and may be the best ones


def plain(optimizer: optax.GradientTransformation) -> Update:
    """Returns the update of an optimizer, whose updates are None for frozen parameters."""

    def apply(gradients: Any, state: Any, params: Any, rate: Array, moment: Moment) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda p, u: p if u is None else p + rate * u, params, updates), state

    return Update(optimizer.init, apply)


def averaged(inner: Update, decay: float, frozen: Any) -> Update:
    """Returns an update whose params are running averages of those that `inner` trains.

    After t updates the decay is the smaller of `decay` and (1 + t) / (10 + t), so that a short run forgets where it
    started. A weight that is exactly 0 has been pruned, so its average is 0 too. Frozen parameters, True in `frozen`,
    are not averaged: they keep their bits. The state has the trained parameters, sharded as the averages are.
    """

    def init(params: Any) -> dict[str, Any]:
        copies = jax.tree.map(jnp.copy, drop_frozen(frozen, params))  # the step reuses the memory of both
        return {"optimizer": inner.init(params), "trained": copies}

    def apply(gradients: Any, state: Any, params: Any, rate: Array, moment: Moment) -> tuple[Any, Any]:
        trained, optimizer = inner.apply(gradients, state["optimizer"], trained_params(params, state), rate, moment)
        trained = drop_frozen(frozen, trained)
        steps = moment.step.astype(jnp.float32)
        weight = 1 - jnp.minimum(decay, (1 + steps) / (AVERAGE_WARMUP + steps))

        def average(mean: Array, new: Array | None) -> Array:
            return mean if new is None else jnp.where(new == 0, new, mean + weight * (new - mean))

        return jax.tree.map(average, params, trained), {"optimizer": optimizer, "trained": trained}

    def trained_params(params: Any, state: Any) -> Any:
        return jax.tree.map(lambda mean, own: mean if own is None else own, params, state["trained"])

    def weights(params: Any, state: Any) -> Any:
        return inner.weights(trained_params(params, state), state["optimizer"])

    note = f"evaluations, checkpoints and exports have running averages of the parameters, with a decay of {decay:g}"
    metrics = lambda state: inner.metrics(state["optimizer"])  # noqa: E731
    return Update(init, apply, weights, metrics, (*inner.notes, note), inner.complete_from)
