"""The update: optax chains, learning-rate schedules, and which parameters each rule is for."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlm.errors import UserError

# Names that rules take beside patterns. Whatever stands on the encoder is a head; a tied output is the token table.
GROUPS = {"embeddings": "^encoder/embeddings/", "encoder": "^encoder/", "head": "^(?!encoder/)"}
NAMES = "embeddings, encoder, head, layers:0-5, layers:0,1,2 or a pattern of parameter paths"


def param_path(path: Sequence[Any]) -> str:
    """Returns the path of a leaf as `encoder/layers_0/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_params(function, params: Any) -> Any:
    """Returns the tree with function(path, leaf) in each leaf's place."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(param_path(path), leaf), params)


def find_in(pattern: str, path: str) -> bool:
    """Whether a regular expression, or a name such as `embeddings` or `layers:0-5`, is found in a parameter's path."""
    if pattern.startswith("layers:"):
        number = layer_number(path)
        return number is not None and any(number in span for span in _layer_spans(pattern))
    return re.search(GROUPS.get(pattern, pattern), path) is not None


def layer_number(path: str) -> int | None:
    """Returns which layer, counted from 0, a parameter belongs to; None outside the layers."""
    found = re.search(r"/layers_(\d+)/", path)
    return int(found[1]) if found else None


def _layer_count(params: Any) -> int:
    numbers = (layer_number(param_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return max((number + 1 for number in numbers if number is not None), default=0)


def _layer_spans(pattern: str) -> list[range]:
    """Returns the layers of `layers:0-5` or `layers:0,1,2`."""
    spans = (part.partition("-") for part in pattern.removeprefix("layers:").split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in spans]


def _check_pattern(pattern: str, rule: str, params: Any, key: str) -> None:
    """Raises UserError for layers that the model has not, and for what is no regular expression."""
    if pattern.startswith("layers:"):
        if not re.fullmatch(r"layers:\d+(-\d+)?(,\d+(-\d+)?)*", pattern) or not all(_layer_spans(pattern)):
            raise UserError(f"{key}: {rule}: layers:0-5 or layers:0,1,2 is meant, counted from 0")
        if max(span[-1] for span in _layer_spans(pattern)) >= (count := _layer_count(params)):
            raise UserError(f"{key}: {rule}: the model's layers are 0 to {count - 1}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {rule}: {pattern} is no regular expression ({error})") from error


def match_rules(
    rules: Sequence[tuple[str, Any]], params: Any, what: str, every_rule: bool = True, otherwise: Any = None
) -> Any:
    """Returns for each parameter the value of the first rule whose pattern is found in its path.

    Raises UserError for a parameter that no rule covers, unless `otherwise` is its value, and, unless `every_rule` is
    off, a rule that covers none.
    """
    used, uncovered = set(), []

    def value(path: str, leaf: Any) -> Any:
        for number, (pattern, result) in enumerate(rules):
            if find_in(pattern, path):
                used.add(number)
                return result
        uncovered.append(path)
        return otherwise

    values = map_params(value, params)
    if uncovered and otherwise is None:
        raise UserError(
            f"no rule of {what} covers {uncovered[0]}" + (f" and {len(uncovered) - 1} more" if uncovered[1:] else "")
        )
    idle = [pattern for number, (pattern, _) in enumerate(rules) if number not in used]
    if idle and every_rule:
        raise UserError(f"the rule {idle[0]} of {what} covers no parameter; mend or remove it")
    return values


def _read_rules(entries: Sequence[str], params: Any, key: str, meant: str, read: Callable[[str], Any]) -> list:
    """Returns (pattern, value) of each PATTERN=VALUE; read gives None for a text that is no value."""
    rules = []
    for rule in entries:
        pattern, _, text = rule.rpartition("=")
        if not pattern or (value := read(text)) is None:
            raise UserError(f"{key}: {rule}: {meant} is meant")
        _check_pattern(pattern, rule, params, key)
        rules.append((pattern, value))
    return rules


def decay_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True where weight decay applies, from the rules of `optimizer.decay`."""
    answers = {"yes": True, "no": False}
    rules = _read_rules(settings.decay, params, "optimizer.decay", "PATTERN=yes or PATTERN=no", answers.get)
    return match_rules(rules, params, "optimizer.decay")


def frozen_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True where `optimizer.freeze` keeps a parameter as it is; params may be shapes.

    Raises UserError for an entry that is found in no path, and where nothing is left to learn.
    """
    key, entries = "optimizer.freeze", _whole_entries(settings.freeze)
    paths = [param_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for entry in entries:
        _check_pattern(entry, entry, params, key)
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
    """Returns each parameter's factor on the learning rate: that of `optimizer.rates` times its layer's decay.

    The head, and the norm after the last layer, have a decay of 1, layer i of n has layer_decay ** (n - i), the
    embeddings layer_decay ** (n + 1). The idea is ELECTRA's (arXiv 2003.10555), the exponents BEiT's (arXiv
    2106.08254); ELECTRA's code has one more below the head. Raises UserError for rules that cannot be meant.
    """
    rules = _read_rules(settings.rates, params, "optimizer.rates", "PATTERN=FACTOR, a factor above 0,", _above_zero)
    factors = match_rules(rules, params, "optimizer.rates", otherwise=1.0)
    layers = _layer_count(params)

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


def is_layer_matrix(path: str, leaf: Any) -> bool:
    """Whether Muon turns this parameter: the matrices of the layers, not tables, heads, norms or biases."""
    return "/layers_" in path and path.endswith("/kernel") and leaf.ndim == 2


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
            optax.partition({"matrix": _muon(settings, compute_dtype), "rest": adam}, kinds), weight_decay
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


def _muon(settings: Any, compute_dtype: str) -> optax.GradientTransformation:
    def turn(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda update: widen(orthogonalise(update, compute_dtype)), updates)

    def widen(
        update: Array,
    ) -> Array:  # a kernel [in, out] that widens gets more, to keep its output's size
        return update * max(1.0, update.shape[1] / update.shape[0]) ** 0.5

    return optax.chain(optax.trace(settings.muon_momentum, nesterov=True), optax.stateless(turn))


def orthogonalise(x: Array, compute_dtype: str = "float32") -> Array:
    """Returns the matrix float32 [M, N] with its singular values all near 1: five steps of a Newton-Schulz iteration.

    Coefficients and number of steps are those of Muon (https://kellerjordan.github.io/posts/muon/), which bring values
    to between 0.7 and 1.2 and no nearer. Products are in the compute dtype: the iteration mends what they round.
    """
    dtype = jnp.dtype(compute_dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None

    def dot(left: Array, right: Array, right_axis: int = 0) -> Array:
        dimensions = (((1,), (right_axis,)), ((), ()))
        left, right = left.astype(dtype), right.astype(dtype)
        return jax.lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32)

    def step(_: Any, x: Array) -> Array:
        square = dot(x, x, 1)
        return 3.4445 * x + dot(-4.7750 * square + 2.0315 * dot(square, square), x)

    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = jax.lax.fori_loop(0, 5, step, wide / (jnp.linalg.norm(wide) + 1e-8))
    return wide if x.shape[0] <= x.shape[1] else wide.T


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
