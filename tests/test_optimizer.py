import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.model.config import PRESETS, encoder_config
from jaxlm.model.heads import abstract_params
from jaxlm.optimizer import decay_mask, make_optimizer, make_schedule, map_params, match_rules, param_path

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile
RATE, MUON_RATE, DECAY = 0.125, 0.5, 0.25


def optimizer_settings(**changes):
    section = default_config().optimizer
    section.update(learning_rate=RATE, muon_learning_rate=MUON_RATE, weight_decay=DECAY, **changes)
    return section


def flatten(tree):
    return {param_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def model_shapes():
    section = default_config().model
    section.update(layers=1, width=16, heads=2, feed_forward_width=32, positions="learned", embedding_norm=True)
    section.update(max_positions=24, token_types=2, tied_output=False)
    return abstract_params(encoder_config(section, 40))


def random_like(tree, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), tree)


def train(settings, params, gradients):
    """Returns the parameters after each update with one of the gradients, by path."""
    optimizer = make_optimizer(settings, jax.eval_shape(lambda: params))

    @jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(lambda p, u: p + settings.learning_rate * u, params, updates), state

    state, history = jit(optimizer.init)(params), []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(flatten(params))
    return history


def is_weight(path):
    return path.rpartition("/")[2] in ("kernel", "embedding")


def is_layer_kernel(path):
    return "/layers_" in path and path.endswith("/kernel")


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_a_step_with_zero_gradients_moves_kernels_and_tables_only(name):
    params = random_like(model_shapes(), 0)
    before = flatten(params)
    (after,) = train(optimizer_settings(name=name), params, [jax.tree.map(np.zeros_like, params)])
    assert {path for path in before if (before[path] != after[path]).any()} == {p for p in before if is_weight(p)}
    assert {path.rpartition("/")[2] for path in before} == {"kernel", "embedding", "bias", "scale"}
    for path, value in before.items():
        if is_weight(path) and name != "lamb":
            rate = MUON_RATE if name == "muon" and is_layer_kernel(path) else RATE
            np.testing.assert_allclose(after[path], value * (1 - rate * DECAY), rtol=1e-5)


def numpy_adam(gradients, settings):
    """Returns Adam's directions, one for each gradient, in float64."""
    mean, square, directions = 0.0, 0.0, []
    for step, gradient in enumerate(gradients, 1):
        mean = settings.beta1 * mean + (1 - settings.beta1) * gradient
        square = settings.beta2 * square + (1 - settings.beta2) * gradient**2
        corrected = square / (1 - settings.beta2**step)
        directions.append(mean / (1 - settings.beta1**step) / (np.sqrt(corrected) + settings.epsilon))
    return directions


SMALL = {"layer": {"kernel": np.zeros((3, 5)), "bias": np.zeros(5)}, "norm": {"scale": np.zeros(5)}}


def small_problem():
    gradients = [random_like(SMALL, seed) for seed in (1, 2, 3)]
    gradients[1] = jax.tree.map(lambda gradient: gradient / 1000, gradients[1])  # below any clipping
    return random_like(SMALL, 0), gradients


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_adamw_is_the_reference_for_three_steps_with_and_without_clipping(clip_norm):
    params, gradients = small_problem()
    settings = optimizer_settings(clip_norm=clip_norm, beta1=0.8, beta2=0.9, epsilon=1e-3)
    history = train(settings, params, gradients)
    norms = [np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient))) for gradient in gradients]
    assert norms[0] > 1 > norms[1]
    clipped = [
        {path: leaf * min(1.0, clip_norm / norm if clip_norm else 1.0) for path, leaf in flatten(gradient).items()}
        for gradient, norm in zip(gradients, norms, strict=True)
    ]
    for path, value in flatten(params).items():
        expected = value.astype(np.float64)
        for after, direction in zip(history, numpy_adam([c[path] for c in clipped], settings), strict=True):
            expected = expected - RATE * (direction + (DECAY * expected if is_weight(path) else 0))
            np.testing.assert_allclose(after[path], expected, rtol=1e-4, atol=1e-5)


def test_lamb_scales_each_parameters_update_to_the_parameters_norm():
    params, gradients = small_problem()
    params["layer"]["bias"][:] = 0  # of norm 0: Adam's update as it is
    settings = optimizer_settings(name="lamb", clip_norm=0.0)
    history = train(settings, params, gradients[:2])
    for path, value in flatten(params).items():
        expected = value.astype(np.float64)
        directions = numpy_adam([flatten(gradient)[path] for gradient in gradients[:2]], settings)
        for after, direction in zip(history, directions, strict=True):
            direction = direction + (DECAY * expected if is_weight(path) else 0)
            norm = np.linalg.norm(expected)
            expected = expected - RATE * direction * (norm / np.linalg.norm(direction) if norm else 1.0)
            np.testing.assert_allclose(after[path], expected, rtol=1e-4, atol=1e-5)


def test_muon_turns_the_layers_matrices_with_momentum_and_leaves_the_rest_to_adam():
    params, gradient = random_like(model_shapes(), 0), random_like(model_shapes(), 1)
    polar = {}  # of each matrix: its nearest orthogonal one, whose singular values are all 1

    def conditioned(path, leaf):
        if not is_layer_kernel(path):
            return leaf
        left, values, right = np.linalg.svd(leaf, full_matrices=False)
        polar[path] = left @ right
        return left @ np.diag(np.linspace(0.3, 1.0, len(values), dtype=np.float32)) @ right

    gradient = map_params(conditioned, gradient)
    settings = optimizer_settings(name="muon", clip_norm=0.0)
    history = train(settings, params, [gradient, jax.tree.map(lambda leaf: -0.1 * leaf, gradient)])
    gradient = flatten(gradient)
    for path, start in flatten(params).items():
        values = [start, *(after[path] for after in history)]
        rate = MUON_RATE if path in polar else RATE
        # What an update subtracted, but for the decay.
        first, second = ((values[i] - values[i + 1]) / rate - DECAY * values[i] * is_weight(path) for i in (0, 1))
        if path in polar:
            rows, columns = first.shape
            turned = first / max(1.0, columns / rows) ** 0.5
            singular = np.linalg.svd(turned, compute_uv=False)
            assert singular.min() > 0.6, path
            assert singular.max() < 1.3, path
            assert (turned * polar[path]).sum() / (polar[path] ** 2).sum() == pytest.approx(1, abs=0.2)
            assert (second * polar[path]).sum() > 0  # a small step back does not turn it round
        else:
            (expected,) = numpy_adam([gradient[path]], settings)
            np.testing.assert_allclose(first, expected, rtol=1e-3, atol=1e-4)
    assert {matrix.shape for matrix in polar.values()} == {(16, 16), (16, 32), (32, 16)}


def test_gradients_are_clipped_to_the_global_norm_of_all_parameters():
    params, gradients = small_problem()
    update = make_optimizer(optimizer_settings(clip_norm=0.5), params)
    _, state = jit(lambda: update.update(gradients[0], update.init(params), params))()
    mean = next(leaf for leaf in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")).mu
    assert optax.global_norm(mean) == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_what_decays_is_a_setting_and_the_first_rule_counts():
    rules = ("token/embedding$=no", "norm=yes", "/(kernel|embedding)$=yes", "/(bias|scale)$=no")
    for path, decays in flatten(decay_mask(optimizer_settings(decay=rules), model_shapes())).items():
        token_table = path == "encoder/embeddings/token/embedding"
        assert decays == ("norm" in path or (is_weight(path) and not token_table)), path


@pytest.mark.parametrize(("rules", "message"), [
    (["/kernel$=yes", "/bias$=no"], "no rule of optimizer.decay covers encoder/"),
    (["/(kernel|embedding)$=yes", "/(bias|scale)$=no", "/gamma$=no"], "/gamma$"),
    ([".*=yes", "/bias$=no"], "/bias$"),
    ([".*=perhaps"], "PATTERN=yes or PATTERN=no"),
    ([".*"], "PATTERN=yes or PATTERN=no"),
    (["=no"], "PATTERN=yes or PATTERN=no"),
    (["(kernel=yes", ".*=no"], "(kernel is no regular expression"),
])  # fmt: skip
def test_rules_of_decay_that_leave_a_gap_or_match_nothing_are_refused(rules, message):
    with pytest.raises(UserError) as error:
        make_optimizer(optimizer_settings(decay=tuple(rules)), model_shapes())
    assert message in str(error.value)
    assert "optimizer.decay" in str(error.value)


def test_rules_may_be_idle_only_where_that_is_said():
    rules = [("kernel", 1), ("gamma", 2), (".*", 3)]
    values = match_rules(rules, model_shapes(), "a table", every_rule=False)
    assert set(jax.tree.leaves(values)) == {1, 3}
    with pytest.raises(UserError, match="the rule gamma of a table"):
        match_rules(rules, model_shapes(), "a table")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_rules_cover_every_published_architecture(preset):
    section = default_config().model
    section.update(PRESETS[preset])
    encoder = dataclasses.replace(encoder_config(section), layers=2)
    mask = decay_mask(default_config().optimizer, abstract_params(encoder))
    for path, decays in flatten(mask).items():
        assert decays == is_weight(path), path


# Schedules


def factors(points, total=100, **changes):
    section = default_config().schedule
    section.update(final=0.0, **changes)
    return np.asarray(make_schedule(section, total)(jnp.asarray(points, jnp.float32)))


@pytest.mark.parametrize(("changes", "points"), [
    ({"name": "linear", "warmup": 0.1}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 55: 0.5, 99: 1 / 90, 100: 0}),
    ({"name": "linear", "warmup": 10.0}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 55: 0.5, 99: 1 / 90, 100: 0}),
    ({"name": "linear", "warmup": 0.0}, {0: 1, 50: 0.5, 100: 0}),
    ({"name": "linear", "warmup": 1.0}, {0: 1, 1: 1}),
    ({"name": "linear", "warmup": 500.0}, {0: 0.01, 99: 1}),
    ({"name": "cosine", "warmup": 0.0}, {0: 1, 25: (1 + 0.5**0.5) / 2, 50: 0.5, 100: 0}),
    ({"name": "cosine", "warmup": 20.0}, {0: 0.05, 19: 1, 20: 1, 60: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 0.1, "decay": 0.2}, {0: 0.1, 10: 1, 50: 1, 80: 1, 90: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 10.0, "decay": 20.0}, {0: 0.1, 10: 1, 50: 1, 80: 1, 90: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 0.1, "decay": 0.2, "decay_shape": "1-sqrt"}, {80: 1, 85: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 60.0, "decay": 60.0}, {0: 1 / 60, 60: 1, 80: 0.5, 100: 0}),
    ({"name": "constant", "warmup": 0.1}, {0: 0.1, 9: 1, 10: 1, 100: 1}),
])  # fmt: skip
def test_schedules_have_their_known_values(changes, points):
    np.testing.assert_allclose(factors(list(points), **changes), list(points.values()), atol=1e-5)


@pytest.mark.parametrize(("name", "middle"), [("linear", 0.6), ("cosine", 0.6), ("wsd", 0.6)])
def test_the_final_share_of_the_peak_is_left_at_the_end(name, middle):
    section = default_config().schedule
    section.update(name=name, warmup=0.0, decay=100.0, final=0.2)
    values = make_schedule(section, 100)(jnp.array([0.0, 50.0, 100.0, 120.0]))
    np.testing.assert_allclose(values, [1, middle, 0.2, 0.2], atol=1e-5)


SHARE_OR_STEPS = st.one_of(st.floats(0.0, 0.99), st.integers(1, 2000).map(float))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["linear", "cosine", "wsd", "constant"]),
    total=st.integers(1, 1500),
    warmup=SHARE_OR_STEPS,
    decay=SHARE_OR_STEPS,
    shape=st.sampled_from(["linear", "1-sqrt"]),
    final=st.floats(0.0, 1.0),
)
def test_a_schedule_rises_from_above_0_to_1_then_never_rises_and_has_no_jumps(name, total, warmup, decay, shape, final):
    section = default_config().schedule
    section.update(name=name, warmup=warmup, decay=decay, decay_shape=shape, final=final)
    points = np.arange(1501.0)
    values = np.asarray(make_schedule(section, total)(jnp.asarray(points, jnp.float32)))[: total + 1]
    assert (values >= 0).all()
    assert (values <= 1 + 1e-6).all()
    assert values[0] > 0
    rising = min(warmup * total if warmup < 1 else warmup, total)
    top = min(int(np.ceil(rising)), total)
    assert (np.diff(values[:top]) >= 0).all()
    assert (np.diff(values[top:]) <= 1e-6).all()
    if rising >= 1:
        assert values[max(top - 1, 0)] == pytest.approx(1, abs=1e-5)
    rest = total - rising
    fall = min(decay * total if decay < 1 else decay, rest) if name == "wsd" else rest
    steepest = max(1 / max(rising, 1), 2 / max(fall, 1), max(fall, 1) ** -0.5 if shape == "1-sqrt" else 0)
    assert np.abs(np.diff(values[:total])).max(initial=0) <= steepest + 1e-5


def test_a_schedule_by_the_clock_takes_fractions_of_its_units():
    values = factors(np.linspace(0, 1000, 2001), total=1000.0, name="linear", warmup=0.06)
    assert np.abs(np.diff(values)).max() < 0.01
    assert values[0] > 0
    assert values[-1] == pytest.approx(0, abs=1e-6)
