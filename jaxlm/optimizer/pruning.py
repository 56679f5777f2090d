"""Pruning: the least important weights are set to 0 during training, and no update can revive them.

Importance is the magnitude of a weight, or its movement: how much training has moved it away from 0 (arXiv 2005.07683).
Weights of all matrices compete with each other. Their number grows to the wanted sparsity by a cubic schedule (arXiv
1710.01878).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlm.errors import UserError
from jaxlm.optimizer.update import Moment, Update
from jaxlm.runtime.parameter_paths import NAMES, check_pattern, find_in, map_params, param_path

LARGEST = 2**31 - 1  # weights, which are counted in int32


def prunable_mask(patterns: Sequence[str], params: Any, frozen: Any) -> Any:
    """Returns a tree of bools, True for the matrices that pruning.parameters selects; params may be shapes.

    Raises UserError for a pattern that selects no matrix, or a frozen one, which keeps its bits.
    """
    key = "pruning.parameters"
    matrices = [param_path(path) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if leaf.ndim >= 2]
    for pattern in patterns:
        check_pattern(pattern, pattern, params, key)
        if not pattern or not any(find_in(pattern, path) for path in matrices):
            raise UserError(f"{key}: {pattern} matches no matrix; expected {NAMES}")
    if not patterns:
        raise UserError(f"{key} is empty; name the matrices to prune, or set pruning.sparsity=0")
    mask = map_params(lambda path, leaf: path in matrices and any(find_in(one, path) for one in patterns), params)
    for path, both in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: a and b, mask, frozen)):
        if both:
            raise UserError(
                f"{key}: {param_path(path)} is frozen by optimizer.freeze and cannot be pruned; set {key} to parameters"
                " that are trained"
            )
    return mask


def pruned(inner: Update, settings: Any, params: Any, frozen: Any) -> Update:
    """Returns an update that prunes the matrices of section `pruning` to pruning.sparsity; params may be shapes.

    The state has "kept", bools of the shapes of the matrices, and for the method movement, sums of -weight x gradient.
    Raises UserError for parameters that cannot be pruned.
    """
    mask = prunable_mask(settings.parameters, params, frozen)
    total = sum(leaf.size for leaf in jax.tree.leaves(_chosen(mask, params)))
    if total > LARGEST:
        raise UserError(f"pruning.parameters: {total:,} weights are more than can be pruned, {LARGEST:,}; name fewer")
    goal = round(settings.sparsity * total)
    if not goal:
        raise UserError(
            f"pruning.sparsity={settings.sparsity} prunes none of {total:,} weights; raise it, or set it to 0"
        )
    if settings.begin > settings.end:
        raise UserError(f"pruning.begin={settings.begin:g} is after pruning.end={settings.end:g}; lower it")
    by_movement = settings.method == "movement"

    def init(params: Any) -> dict[str, Any]:
        chosen = _chosen(mask, params)
        state = {"optimizer": inner.init(params), "count": jnp.int32(0)}
        state["kept"] = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), chosen)
        return state | ({"movement": jax.tree.map(jnp.zeros_like, chosen)} if by_movement else {})

    def apply(gradients: Any, state: Any, params: Any, rate: Array, moment: Moment) -> tuple[Any, Any]:
        new, optimizer = inner.apply(gradients, state["optimizer"], params, rate, moment)
        chosen, state = _chosen(mask, new), {**state, "optimizer": optimizer}
        scores = jax.tree.map(jnp.abs, chosen)
        if by_movement:
            before, slopes = _chosen(mask, params), _chosen(mask, gradients)
            scores = jax.tree.map(lambda sum, w, g: sum - w * g, state["movement"], before, slopes)
            state["movement"] = scores
        share = jnp.clip((moment.share - settings.begin) / max(settings.end - settings.begin, 1e-9), 0, 1)
        wanted = jnp.where(share >= 1, goal, (goal * (1 - (1 - share) ** 3)).astype(jnp.int32))
        due = (wanted > state["count"]) & ((share >= 1) | (moment.step % settings.every == 0))
        prune = lambda kept: keep_best(scores, kept, wanted)  # noqa: E731
        kept = lax.cond(due, prune, lambda kept: kept, state["kept"])
        state |= {"kept": kept, "count": jnp.where(due, wanted, state["count"])}
        return jax.tree.map(lambda p, k: p if k is None else jnp.where(k, p, 0), new, kept), state

    def metrics(state: Any) -> dict[str, Array]:
        return inner.metrics(state["optimizer"]) | {"sparsity": state["count"] / total}

    note = f"{goal:,} of {total:,} weights ({goal / total:.1%}) are pruned by {settings.method}"
    return Update(init, apply, inner.weights, metrics, (*inner.notes, note), max(settings.end, inner.complete_from))


def keep_best(scores: Any, kept: Any, pruned: Array) -> Any:
    """Returns a tree of bools, False for the `pruned` weights with the lowest scores over all arrays.

    Weights that `kept` has as False stay so. Among equal scores the first ones are pruned, so that the number is exact.
    The threshold is found bit by bit, by counting: nothing is sorted or gathered, wherever the arrays are.
    """
    keys = jax.tree.map(lambda score, k: jnp.where(k, jnp.maximum(_sortable(score), 1), 0), scores, kept)
    leaves, structure = jax.tree.flatten(keys)

    def count_below(threshold: Array) -> Array:
        return sum((jnp.sum(leaf < threshold, dtype=jnp.int32) for leaf in leaves), jnp.int32(0))

    def next_bit(number: Array, threshold: Array) -> Array:
        candidate = threshold | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
        return jnp.where(count_below(candidate) < pruned, candidate, threshold)

    threshold = lax.fori_loop(0, 32, next_bit, jnp.uint32(0))  # the key of the last weight to be pruned
    missing = pruned - count_below(threshold)  # of those with this key
    result = []
    for leaf in leaves:
        ties = leaf == threshold
        rank = jnp.cumsum(ties.ravel(), dtype=jnp.int32).reshape(leaf.shape)
        result.append((leaf > threshold) | (ties & (rank > missing)))
        missing = jnp.maximum(missing - jnp.sum(ties, dtype=jnp.int32), 0)
    return jax.tree.unflatten(structure, result)


def _sortable(values: Array) -> Array:
    """Returns uint32 in the order of float32 values."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _chosen(mask: Any, tree: Any) -> Any:
    """Returns the tree with None, which has no leaves for JAX, in place of what the mask does not choose."""
    return jax.tree.map(lambda chosen, leaf: leaf if chosen else None, mask, tree)
