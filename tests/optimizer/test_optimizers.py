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
from jaxlm.model.config import encoder_config
from jaxlm.model.heads import MaskedLM, abstract_params
from jaxlm.model.presets import PRESETS
from jaxlm.optimizer.muon import orthogonalise
from jaxlm.optimizer.optimizers import drop_frozen, make_optimizer, stop_frozen_gradients
from jaxlm.optimizer.parameter_rules import decay_mask, frozen_mask, rate_multipliers
from jaxlm.optimizer.schedules import make_schedule
from jaxlm.run import set_up
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.runtime.parameter_paths import map_params, match_rules, param_path
from jaxlm.runtime.sharding import make_mesh, state_shardings
from jaxlm.trainer import train as run_training
from jaxlm.use.loading import load_trained

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile
RATE, MUON_RATE, DECAY = 0.125, 0.5, 0.25


def optimizer_settings(**changes):
    section = default_config().optimizer
    section.update(learning_rate=RATE, muon_learning_rate=MUON_RATE, weight_decay=DECAY, **changes)
    return section


def flatten(tree):
    return {param_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def model_shapes(layers=1):
    section = default_config().model
    section.update(layers=layers, width=16, heads=2, feed_forward_width=32, positions="learned", embedding_norm=True)
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
        move = lambda p, u: p if u is None else p + settings.learning_rate * u  # noqa: E731
        return jax.tree.map(move, params, updates), state

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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)], ids=str)
def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_directions(shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    values = np.linspace(0.2, 1.0, min(shape))
    turned = np.asarray(orthogonalise(jnp.asarray(left @ np.diag(values) @ right, jnp.float32), dtype))
    scaled = values / np.linalg.norm(values)
    for _ in range(5):  # what the iteration does to each singular value
        scaled = 3.4445 * scaled - 4.7750 * scaled**3 + 2.0315 * scaled**5
    np.testing.assert_allclose(left.T @ turned @ right.T, np.diag(scaled), atol=tolerance)
    assert 0.6 < scaled.min() < scaled.max() < 1.25


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


def test_decay_mask_is_a_setting_and_the_first_matching_rule_applies():
    rules = ("token/embedding$=no", "norm=yes", "/(kernel|embedding)$=yes", "/(bias|scale)$=no")
    for path, decays in flatten(decay_mask(optimizer_settings(decay_mask=rules), model_shapes())).items():
        token_table = path == "encoder/embeddings/token/embedding"
        assert decays == ("norm" in path or (is_weight(path) and not token_table)), path


@pytest.mark.parametrize(("rules", "message"), [
    (["/kernel$=yes", "/bias$=no"], "encoder/"),
    (["/(kernel|embedding)$=yes", "/(bias|scale)$=no", "/gamma$=no"], "/gamma$"),
    ([".*=yes", "/bias$=no"], "/bias$"),
    ([".*=perhaps"], "expected PATTERN=yes or PATTERN=no"),
    ([".*"], "expected PATTERN=yes or PATTERN=no"),
    (["=no"], "expected PATTERN=yes or PATTERN=no"),
    (["(kernel=yes", ".*=no"], "regular expression"),
])  # fmt: skip
def test_decay_rules_that_miss_a_parameter_or_match_none_are_rejected(rules, message):
    with pytest.raises(UserError) as error:
        make_optimizer(optimizer_settings(decay_mask=tuple(rules)), model_shapes())
    assert message in str(error.value)
    assert "optimizer.decay_mask" in str(error.value)


def test_a_rule_may_match_nothing_only_with_every_rule_false():
    rules = [("kernel", 1), ("gamma", 2), (".*", 3)]
    values = match_rules(rules, model_shapes(), "a table", every_rule=False)
    assert set(jax.tree.leaves(values)) == {1, 3}
    with pytest.raises(UserError, match="gamma"):
        match_rules(rules, model_shapes(), "a table")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_rules_cover_every_published_architecture(preset):
    section = default_config().model
    section.update(PRESETS[preset])
    encoder = dataclasses.replace(encoder_config(section), layers=2)
    mask = decay_mask(default_config().optimizer, abstract_params(encoder))
    for path, decays in flatten(mask).items():
        assert decays == is_weight(path), path


# Learning rates by layer


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(layers=st.integers(1, 12), decay=st.floats(0.1, 1.0), factor=st.floats(1e-3, 100.0))
def test_layers_decay_from_the_head_down_and_rates_multiply(layers, decay, factor):
    section = optimizer_settings(layer_decay=decay, rate_multipliers=(f"layers:0-{layers - 1}={factor}", "token/=0.5"))
    for path, value in flatten(rate_multipliers(section, model_shapes(layers))).items():
        if path.startswith("encoder/embeddings/"):
            expected = decay ** (layers + 1) * (0.5 if "/token/" in path else 1)
        elif "/layers_" in path:
            expected = decay ** (layers - int(path.split("layers_")[1].split("/")[0])) * factor
        else:
            expected = 1
            assert path.startswith(("head/", "encoder/final_norm/"))
        assert value == pytest.approx(expected, rel=1e-6), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_a_multiplier_scales_updates_exactly(name):
    params, gradient = random_like(model_shapes(2), 0), random_like(model_shapes(2), 1)

    def updates(**changes):
        update = make_optimizer(optimizer_settings(name=name, **changes), params)
        return jit(lambda: update.update(gradient, update.init(params), params)[0])()

    plain = flatten(updates())
    rates = ("up/kernel$=8", "layers:1=0.25", "embeddings=0.5", "head=3")
    scaled, decayed = flatten(updates(rate_multipliers=rates)), flatten(updates(layer_decay=0.5))
    for path, update in plain.items():
        if path.endswith("up/kernel"):  # the first rule counts
            factor, by_layer = 8, 0.5 ** (2 - ("layers_1" in path))
        elif "/layers_" in path:
            factor, by_layer = (0.25, 0.5) if "layers_1" in path else (1, 0.25)
        elif "embeddings" in path:
            factor, by_layer = 0.5, 0.125
        else:
            factor, by_layer = (3 if path.startswith("head/") else 1), 1
        # Powers of two leave the bits alone; three costs a rounding.
        np.testing.assert_allclose(scaled[path], update * np.float32(factor), rtol=2e-7 if factor == 3 else 0)
        np.testing.assert_array_equal(decayed[path], update * np.float32(by_layer), err_msg=path)


def test_a_multiplier_scales_the_gradient_step_and_weight_decay():
    params, gradients = small_problem()
    # Without means over steps and with a large epsilon a step is one of gradient descent, at rate / epsilon.
    section = optimizer_settings(
        clip_norm=0.0, beta1=0.0, beta2=0.0, epsilon=2.0**20, rate_multipliers=("kernel=0.375",)
    )
    (after,) = train(section, params, gradients[:1])
    gradient = flatten(gradients[0])
    for path, value in flatten(params).items():
        factor, decay = (0.375, DECAY) if path == "layer/kernel" else (1.0, 0.0)
        moved = value - RATE * factor * (gradient[path] / 2.0**20 + decay * value)
        np.testing.assert_allclose(after[path], moved, rtol=1e-6)
    (still,) = train(section, params, [jax.tree.map(np.zeros_like, params)])
    np.testing.assert_allclose(still["layer/kernel"], params["layer"]["kernel"] * (1 - RATE * 0.375 * DECAY), rtol=1e-6)


def test_a_matrix_under_muon_has_its_own_rate_times_the_multiplier():
    params = random_like(model_shapes(2), 0)
    section = optimizer_settings(name="muon", layer_decay=0.5, rate_multipliers=("query/kernel$=0.5",))
    (after,) = train(section, params, [jax.tree.map(np.zeros_like, params)])
    for path, value in flatten(params).items():
        if is_layer_kernel(path):
            factor = (0.5 if "layers_1" in path else 0.25) * (0.5 if "query" in path else 1)
            np.testing.assert_allclose(after[path], value * (1 - MUON_RATE * factor * DECAY), rtol=1e-5)


@pytest.mark.parametrize(("rates", "message"), [
    (("embeddings=0.1", "gamma=2"), "gamma"),
    (("encoder=0.1", "layers:0=2"), "layers:0"),
    (("embeddings",), "expected PATTERN=FACTOR with a factor above 0"),
    (("embeddings=0",), "a factor above 0"),
    (("embeddings=-1",), "a factor above 0"),
    (("embeddings=inf",), "a factor above 0"),
    (("embeddings=nan",), "a factor above 0"),
    (("embeddings=fast",), "a factor above 0"),
    (("=2",), "PATTERN=FACTOR"),
    (("(kernel=2",), "regular expression"),
    (("layers:1-3=2",), "layers:1-3=2: the model's layers are 0 to 1"),
])  # fmt: skip
def test_invalid_rate_multipliers_are_rejected(rates, message):
    with pytest.raises(UserError) as error:
        make_optimizer(optimizer_settings(rate_multipliers=rates), model_shapes(2))
    assert message in str(error.value)
    assert "optimizer.rate_multipliers" in str(error.value)


# Freezing


def frozen_paths(*freeze, layers=4):
    mask = flatten(frozen_mask(optimizer_settings(freeze=freeze), model_shapes(layers)))
    return {path for path, frozen in mask.items() if frozen}


@pytest.mark.parametrize(("freeze", "prefixes"), [
    ((), ()),
    (("embeddings",), ("encoder/embeddings/",)),
    (("encoder",), ("encoder/",)),
    (("head",), ("head/",)),
    (("layers:2",), ("encoder/layers_2/",)),
    (("layers:1-2", "head"), ("encoder/layers_1/", "encoder/layers_2/", "head/")),
    (("layers:0,2-3",), ("encoder/layers_0/", "encoder/layers_2/", "encoder/layers_3/")),
    (("layers:0", "2", "3", "head"), ("encoder/layers_0/", "encoder/layers_2/", "encoder/layers_3/", "head/")),
    (("encoder", "layers:0"), ("encoder/",)),  # said twice
    (("^encoder/final_norm", "embeddings/token/"), ("encoder/final_norm/", "encoder/embeddings/token/")),
])  # fmt: skip
def test_freeze_takes_names_and_patterns(freeze, prefixes):
    everything = set(flatten(model_shapes(4)))
    assert frozen_paths(*freeze) == {path for path in everything if path.startswith(prefixes)}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted), min_size=1, max_size=4))
def test_spans_of_layers_freeze_just_these_layers(spans):
    words = [f"{first}-{last}" if last > first else f"{first}" for first, last in spans]
    numbers = {number for first, last in spans for number in range(first, last + 1)}
    whole, split = frozen_paths("layers:" + ",".join(words), layers=12), ("layers:" + words[0], *words[1:])
    assert whole == frozen_paths(*split, layers=12)
    assert {int(path.split("layers_")[1].split("/")[0]) for path in whole} == numbers
    assert all(path in whole for path in flatten(model_shapes(12)) if any(f"/layers_{n}/" in path for n in numbers))


@pytest.mark.parametrize(("freeze", "message"), [
    (("embeding",), "embeding matches no parameter; expected embeddings, encoder, head, layers:0-5"),
    (("layer:0",), "layer:0 matches no parameter"),
    (("embeddings", "pooler"), "pooler matches no parameter"),
    (("embeddings", "1"), "1 matches no parameter"),
    (("",), "matches no parameter"),
    (("layers:",), "layers:0-5 or layers:0,1,2"),
    (("layers:first",), "layers:0-5 or layers:0,1,2"),
    (("layers:2-1",), "layers:0-5 or layers:0,1,2"),
    (("layers:0-5",), "layers:0-5: the model's layers are 0 to 3"),
    (("layers:0", "4"), "layers:0,4: the model's layers are 0 to 3"),
    (("layers:0-99999999999",), "the model's layers are 0 to 3"),
    (("(kernel",), "regular expression"),
    (("encoder", "head"), "optimizer.freeze=encoder,head freezes every parameter"),
    ((".*",), "freezes every parameter"),
])  # fmt: skip
def test_freezing_nothing_or_everything_is_rejected(freeze, message):
    with pytest.raises(UserError) as error:
        make_optimizer(optimizer_settings(freeze=freeze), model_shapes(4))
    assert message in str(error.value)
    assert "optimizer.freeze" in str(error.value)


FREEZE = ("embeddings", "layers:0", "norm/bias$")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize("freeze", [FREEZE, ("layers:0-1",), ("encoder",)])
def test_trainable_parameters_train_as_if_frozen_ones_did_not_exist(name, freeze):
    """Their clipping norm, state and bits are those of an optimizer without the frozen parameters."""
    params = random_like(model_shapes(2), 0)
    frozen = frozen_mask(optimizer_settings(freeze=freeze), params)
    gradients = [random_like(model_shapes(2), seed) for seed in (1, 2)]
    with_frozen = train(optimizer_settings(name=name, freeze=freeze), params, gradients)
    # The same decay, by rules that hold also where no bias is left.
    alone = optimizer_settings(name=name, decay_mask=("/(kernel|embedding)$=yes", ".*=no"))
    expected = train(alone, drop_frozen(frozen, params), [drop_frozen(frozen, gradient) for gradient in gradients])
    before, frozen = flatten(params), flatten(frozen)
    for after, rest in zip(with_frozen, expected, strict=True):
        for path, value in after.items():
            np.testing.assert_array_equal(value, before[path] if frozen[path] else rest[path], err_msg=path)
    moved = {path for path in before if (before[path] != with_frozen[-1][path]).any()}
    assert moved == {path for path in before if not frozen[path]}


def test_frozen_parameters_keep_their_bits():
    params = random_like(model_shapes(1), 0)
    params["encoder"]["embeddings"]["norm"]["bias"][:] = -0.0
    (after,) = train(optimizer_settings(freeze=("embeddings",)), params, [random_like(model_shapes(1), 1)])
    assert np.signbit(after["encoder/embeddings/norm/bias"]).all()


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_frozen_parameters_have_no_state_and_the_others_are_sharded_and_saved(name, tmp_path):
    params = random_like(model_shapes(2), 0)
    section = optimizer_settings(name=name, freeze=FREEZE)
    init = make_optimizer(section, params).init
    frozen = flatten(frozen_mask(section, params))
    states = {"some": jit(init)(params), "all": jit(make_optimizer(optimizer_settings(name=name), params).init)(params)}
    some, everything = flatten(states["some"]), flatten(states["all"])
    # The same entries under the same paths, but for those of frozen parameters.
    owners = {path: next((p for p in frozen if path.endswith("/" + p)), None) for path in everything}
    assert set(some) == {path for path, owner in owners.items() if owner is None or not frozen[owner]}
    assert sum(leaf.size for leaf in some.values()) < sum(leaf.size for leaf in everything.values()) / 2

    state = {"params": params, "opt_state": states["some"]}
    shapes = jax.eval_shape(lambda: {"params": params, "opt_state": init(params)})
    places = state_shardings(make_mesh(default_config().mesh), shapes)
    assert jax.tree.structure(places) == jax.tree.structure(shapes)
    target = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, jax.tree.map(jnp.asarray, state), {})
    checkpoints.wait()
    restored = checkpoints.restore(target).state
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_without_freezing_the_state_has_the_structure_of_older_checkpoints():
    for name, adam in [("adamw", "1/0/"), ("lamb", "1/0/"), ("muon", "1/0/inner_states/rest/inner_state/")]:
        update = make_optimizer(optimizer_settings(name=name), model_shapes())
        assert f"{adam}mu/head/bias" in flatten(jax.eval_shape(update.init, model_shapes()))


@pytest.mark.slow
def test_the_backward_pass_ends_at_the_lowest_trainable_parameter():
    section = default_config().model
    section.update(layers=4, width=64, heads=2, feed_forward_width=128)
    encoder = encoder_config(section, 40)
    params, tokens = abstract_params(encoder), jnp.zeros((2, 8), jnp.int32)

    def loss(params):
        return MaskedLM(encoder).apply({"params": params}, tokens).sum()

    def flops(function):
        return jax.jit(function).lower(params).cost_analysis()["flops"]

    def backward(*freeze):
        frozen = frozen_mask(optimizer_settings(freeze=freeze), params)
        return flops(jax.grad(lambda params: loss(stop_frozen_gradients(frozen, params)))) - flops(loss)

    whole = backward()
    assert backward("embeddings", "layers:0-1") / whole == pytest.approx(1 / 2, abs=0.03)
    assert backward("embeddings", "layers:0-2") / whole == pytest.approx(1 / 4, abs=0.03)
    assert backward("encoder") < 0.03 * whole
    # Below something that learns, only the half of the products that makes the layers' own gradients goes.
    assert backward("layers:0-1") / whole == pytest.approx(3 / 4, abs=0.03)


@pytest.mark.slow
def test_a_run_with_frozen_layers_keeps_their_bits_and_resumes_exactly(mini, tmp_path):
    overrides = (
        "optimizer.name=muon", "optimizer.freeze=embeddings,layers:0", "optimizer.layer_decay=0.5",
        "optimizer.rate_multipliers=head=2", "schedule.name=constant", "schedule.warmup=0", "train.accumulate=2",
        "checkpoint.every=3",
    )  # fmt: skip
    fresh = flatten(set_up(mini("train.steps=6", *overrides), tmp_path / "whole").fresh_state()["params"])
    whole = run_training(mini("train.steps=6", *overrides), tmp_path / "whole")
    run_training(mini("train.steps=3", *overrides), tmp_path / "parts")
    parts = run_training(mini("train.steps=6", *overrides), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]
    for path, value in flatten(load_trained(tmp_path / "parts", "float32").params).items():
        frozen = path.startswith(("encoder/embeddings/", "encoder/layers_0/"))
        assert (value.tobytes() == fresh[path].tobytes()) == frozen, path


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
    ({"name": "wsd", "warmup": 0.1, "decay_steps": 0.2}, {0: 0.1, 10: 1, 50: 1, 80: 1, 90: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 10.0, "decay_steps": 20.0}, {0: 0.1, 10: 1, 50: 1, 80: 1, 90: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 0.1, "decay_steps": 0.2, "decay_shape": "1-sqrt"}, {80: 1, 85: 0.5, 100: 0}),
    ({"name": "wsd", "warmup": 60.0, "decay_steps": 60.0}, {0: 1 / 60, 60: 1, 80: 0.5, 100: 0}),
    ({"name": "constant", "warmup": 0.1}, {0: 0.1, 9: 1, 10: 1, 100: 1}),
])  # fmt: skip
def test_schedules_have_their_known_values(changes, points):
    np.testing.assert_allclose(factors(list(points), **changes), list(points.values()), atol=1e-5)


@pytest.mark.parametrize(("name", "middle"), [("linear", 0.6), ("cosine", 0.6), ("wsd", 0.6)])
def test_a_schedule_ends_at_its_final_share_of_the_peak(name, middle):
    section = default_config().schedule
    section.update(name=name, warmup=0.0, decay_steps=100.0, final=0.2)
    values = make_schedule(section, 100)(jnp.array([0.0, 50.0, 100.0, 120.0]))
    np.testing.assert_allclose(values, [1, middle, 0.2, 0.2], atol=1e-5)


SHARE_OR_STEPS = st.one_of(st.floats(0.0, 0.99), st.integers(1, 2000).map(float))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["linear", "cosine", "wsd", "constant"]),
    total=st.integers(1, 1500),
    warmup=SHARE_OR_STEPS,
    decay_steps=SHARE_OR_STEPS,
    shape=st.sampled_from(["linear", "1-sqrt"]),
    final=st.floats(0.0, 1.0),
)
def test_a_schedule_rises_from_above_0_to_1_then_never_rises_and_has_no_jumps(
    name, total, warmup, decay_steps, shape, final
):
    section = default_config().schedule
    section.update(name=name, warmup=warmup, decay_steps=decay_steps, decay_shape=shape, final=final)
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
    fall = min(decay_steps * total if decay_steps < 1 else decay_steps, rest) if name == "wsd" else rest
    steepest = max(1 / max(rising, 1), 2 / max(fall, 1), max(fall, 1) ** -0.5 if shape == "1-sqrt" else 0)
    assert np.abs(np.diff(values[:total])).max(initial=0) <= steepest + 1e-5


def test_a_schedule_accepts_fractions_of_a_unit():
    values = factors(np.linspace(0, 1000, 2001), total=1000.0, name="linear", warmup=0.06)
    assert np.abs(np.diff(values)).max() < 0.01
    assert values[0] > 0
    assert values[-1] == pytest.approx(0, abs=1e-6)
