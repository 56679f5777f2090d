"""The update as an optax chain, and which parameters decay, are frozen, or learn at another rate."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.errors import UserError
from jaxlm.optimizer.muon import is_layer_matrix, muon
from jaxlm.runtime.parameter_paths import (
    NAMES,
    check_pattern,
    find_in,
    layer_count,
    layer_number,
    map_params,
    match_rules,
    param_path,
)


def _read_rules(entries: Sequence[str], params: Any, key: str, meant: str, read: Callable[[str], Any]) -> list:
    """Returns (pattern, value) of each PATTERN=VALUE; read gives None for a text that is no value."""
    rules = []
    for rule in entries:
        pattern, _, text = rule.rpartition("=")
        if not pattern or (value := read(text)) is None:
            raise UserError(f"{key}: {rule}: {meant} is meant")
        check_pattern(pattern, rule, params, key)
        rules.append((pattern, value))
    return rules


def decay_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True where weight decay applies, from the rules of `optimizer.decay_mask`."""
    answers = {"yes": True, "no": False}
    rules = _read_rules(settings.decay_mask, params, "optimizer.decay_mask", "PATTERN=yes or PATTERN=no", answers.get)
    return match_rules(rules, params, "optimizer.decay_mask")


def frozen_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True where `optimizer.freeze` keeps a parameter as it is; params may be shapes.

    Raises UserError for an entry that is found in no path, and where nothing is left to learn.
    """
    key, entries = "optimizer.freeze", _whole_entries(settings.freeze)
    paths = [param_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for entry in entries:
        check_pattern(entry, entry, params, key)
        if re.fullmatch(r"[\d,-]*", entry) or not any(find_in(entry, path) for path in paths):
            raise UserError(f"{key}: {entry} names no parameter; {NAMES} is meant")
    mask = map_params(lambda path, _: any(find_in(entry, path) for entry in entries), params)
    if all(jax.tree.leaves(mask)):
        raise UserError(f"{key}={','.join(entries)} leaves nothing to learn; take something out of it")
    return mask


def _whole_entries(entries: Sequence[str]) -> list[str]:
    """Returns the entries with `layers:0,1,2` in one piece; the command line splits lists at commas."""
    whole: list[str] = []
    for entry in entries:
        if whole and whole[-1].startswith("layers:") and re.fullmatch(r"\d+(-\d+)?", entry):
            whole[-1] += f",{entry}"
        else:
            whole.append(entry)
    return whole


def rate_factors(settings: Any, params: Any) -> Any:
    """Returns each parameter's factor on the learning rate: its rate multiplier times its layer's decay.

    The head, and the norm after the last layer, have a decay of 1, layer i of n has layer_decay ** (n - i), the
    embeddings layer_decay ** (n + 1). The idea is ELECTRA's (arXiv 2003.10555), the exponents BEiT's (arXiv
    2106.08254); ELECTRA's code has one more below the head. Raises UserError for rules that cannot be meant.
    """
    rules = _read_rules(
        settings.rate_multipliers,
        params,
        "optimizer.rate_multipliers",
        "PATTERN=FACTOR, a factor above 0,",
        _above_zero,
    )
    factors = match_rules(rules, params, "optimizer.rate_multipliers", otherwise=1.0)
    layers = layer_count(params)

    def below_head(path: str, _: Any) -> int:
        number = layer_number(path)
        return layers + 1 if find_in("embeddings", path) else 0 if number is None else layers - number

    depths = map_params(below_head, params)
    return jax.tree.map(lambda factor, depth: factor * settings.layer_decay**depth, factors, depths)


def _above_zero(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def make_optimizer(settings: Any, params: Any, compute_dtype: str = "float32") -> optax.GradientTransformation:
    """Returns the transformation of section `optimizer`, gradients to updates at a learning rate of one.

    The train step multiplies by the schedule's rate, so the state knows no schedule and a run can be prolonged. Frozen
    parameters have no state, count in no norm, and their update is None. params may be shapes.
    compute_dtype is that of Muon's products.
    AdamW (arXiv 1711.05101), LAMB (arXiv 1904.00962), Muon (arXiv 2502.16982).
    """
    frozen = frozen_mask(settings, params)
    decay, factors = (without(frozen, of(settings, params)) for of in (decay_mask, rate_factors))
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)
    weight_decay = optax.add_decayed_weights(settings.weight_decay, mask=decay)
    if settings.name == "adamw":
        update = optax.chain(adam, weight_decay)
    elif settings.name == "lamb":
        update = optax.chain(adam, weight_decay, optax.scale_by_trust_ratio())
    else:
        kinds = map_params(lambda path, leaf: "matrix" if is_layer_matrix(path, leaf) else "rest", params)
        kinds = without(frozen, kinds)
        # The rate that the step multiplies by is AdamW's; the matrices' peak is another.
        ratio = settings.muon_learning_rate / settings.learning_rate
        factors = jax.tree.map(lambda kind, factor: factor * (ratio if kind == "matrix" else 1.0), kinds, factors)
        update = optax.chain(
            optax.partition({"matrix": muon(settings, compute_dtype), "rest": adam}, kinds), weight_decay
        )
    # After everything else, so that a factor means the same to all three, decay and trust ratio included.
    rescale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return _learning_only(optax.chain(*clip, update, rescale, optax.scale(-1.0)), frozen)


def without(frozen: Any, tree: Any) -> Any:
    """Returns the tree with None in place of what is frozen: to JAX a branch without leaves."""
    return jax.tree.map(lambda still, leaf: None if still else leaf, frozen, tree)


def hold(frozen: Any, params: Any) -> Any:
    """Returns the parameters with the frozen ones as constants: no gradient flows to them, or through what they feed.

    Under it the backward pass ends at the lowest parameter that learns.
    """
    return jax.tree.map(lambda still, leaf: jax.lax.stop_gradient(leaf) if still else leaf, frozen, params)


def _learning_only(update: optax.GradientTransformation, frozen: Any) -> optax.GradientTransformation:
    """Returns the transformation applied to what learns; it sees nothing of the rest."""

    def step(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return update.update(without(frozen, gradients), state, without(frozen, params))

    return optax.GradientTransformation(lambda params: update.init(without(frozen, params)), step)
