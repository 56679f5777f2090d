"""The update: optax chains, learning-rate schedules, and which parameters each rule is for."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlm.errors import UserError


def param_path(path: Sequence[Any]) -> str:
    """Returns the path of a leaf as `encoder/layers_0/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_params(function, params: Any) -> Any:
    """Returns the tree with function(path, leaf) in each leaf's place."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(param_path(path), leaf), params)


def match_rules(rules: Sequence[tuple[str, Any]], params: Any, what: str, every_rule: bool = True) -> Any:
    """Returns for each parameter the value of the first rule whose pattern is found in its path.

    Raises UserError for a parameter that no rule covers and, unless `every_rule` is off, a rule that covers none.
    """
    used, uncovered = set(), []

    def value(path: str, leaf: Any) -> Any:
        for number, (pattern, result) in enumerate(rules):
            if re.search(pattern, path):
                used.add(number)
                return result
        uncovered.append(path)
        return None

    values = map_params(value, params)
    if uncovered:
        raise UserError(
            f"no rule of {what} covers {uncovered[0]}" + (f" and {len(uncovered) - 1} more" if uncovered[1:] else "")
        )
    idle = [pattern for number, (pattern, _) in enumerate(rules) if number not in used]
    if idle and every_rule:
        raise UserError(f"the rule {idle[0]} of {what} covers no parameter; mend or remove it")
    return values


def decay_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True where weight decay applies, from the rules of `optimizer.decay`."""
    rules = []
    for rule in settings.decay:
        pattern, _, answer = rule.rpartition("=")
        if answer not in ("yes", "no") or not pattern:
            raise UserError(f"optimizer.decay: {rule}: PATTERN=yes or PATTERN=no is meant")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"optimizer.decay: {rule}: {pattern} is no regular expression ({error})") from error
        rules.append((pattern, answer == "yes"))
    return match_rules(rules, params, "optimizer.decay")


def is_layer_matrix(path: str, leaf: Any) -> bool:
    """Whether Muon turns this parameter: the matrices of the layers, not tables, heads, norms or biases."""
    return "/layers_" in path and path.endswith("/kernel") and leaf.ndim == 2


def make_optimizer(settings: Any, params: Any) -> optax.GradientTransformation:
    """Returns the transformation of section `optimizer`, gradients to updates at a learning rate of one.

    The train step multiplies by the schedule's rate, so the state knows no schedule and a run can be prolonged.
    params may be shapes. AdamW (arXiv 1711.05101), LAMB (arXiv 1904.00962), Muon (arXiv 2502.16982).
    """
    decay = decay_mask(settings, params)
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)
    weight_decay = optax.add_decayed_weights(settings.weight_decay, mask=decay)
    if settings.name == "adamw":
        update = optax.chain(adam, weight_decay)
    elif settings.name == "lamb":
        update = optax.chain(adam, weight_decay, optax.scale_by_trust_ratio())
    else:
        kinds = map_params(lambda path, leaf: "matrix" if is_layer_matrix(path, leaf) else "rest", params)
        # The rate that the step multiplies by is AdamW's; the matrices' peak is another.
        ratio = settings.muon_learning_rate / settings.learning_rate
        scales = jax.tree.map(lambda kind: ratio if kind == "matrix" else 1.0, kinds)
        rescale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))
        update = optax.chain(optax.partition({"matrix": _muon(settings), "rest": adam}, kinds), weight_decay, rescale)
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return optax.chain(*clip, update, optax.scale(-1.0))


def _muon(settings: Any) -> optax.GradientTransformation:
    def dimensions(params):
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

    def widen(updates, _):  # a kernel [in, out] that widens gets the larger update that keeps its output's size
        return jax.tree.map(lambda update: update * max(1.0, update.shape[1] / update.shape[0]) ** 0.5, updates)

    orthogonal = optax.contrib.scale_by_muon(beta=settings.muon_momentum, weight_dimension_numbers=dimensions)
    return optax.chain(orthogonal, optax.stateless(widen))


def make_schedule(settings: Any, total: float) -> Any:
    """Returns the learning rate's factor (0 to 1) as a function of the updates done, float32 scalar to float32 scalar.

    `total` is the run's length in the same unit: updates, or for a time budget any unit of time. Warm-up is linear;
    wsd is warm-up, stable, decay (arXiv 2404.06395), its "1-sqrt" fall that of arXiv 2405.18392.
    """

    def updates(share_or_steps: float) -> float:
        return share_or_steps * total if share_or_steps < 1 else share_or_steps

    warmup = min(updates(settings.warmup), total)
    rest = max(total - warmup, 1e-6)
    final = settings.final
    if settings.name == "linear":
        after = optax.linear_schedule(1.0, final, rest)
    elif settings.name == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest, final)
    elif settings.name == "constant":
        after = optax.constant_schedule(1.0)
    else:
        fall = max(min(updates(settings.decay), rest), 1e-6)
        straight = optax.linear_schedule(0.0, 1.0, fall, rest - fall)

        def after(count: Array) -> Array:
            share = straight(count)
            return 1 - (1 - final) * (jnp.sqrt(share) if settings.decay_shape == "1-sqrt" else share)

    def factor(done: Array) -> Array:
        # The first update already has a rate above zero: one step of the warm-up is done when it is.
        rising = jnp.minimum((done + 1) / max(warmup, 1.0), 1.0) if warmup > 0 else 1.0
        return jnp.where(done < warmup, rising, after(jnp.maximum(done - warmup, 0.0)))

    return factor
