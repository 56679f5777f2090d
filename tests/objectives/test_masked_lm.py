import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import default_config
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.heads import MaskedLM, encode, init_params, predict
from jaxlm.objectives.causal_lm import CausalLanguageModel
from jaxlm.objectives.masked_lm import MaskedLanguageModel
from jaxlm.objectives.masking import Masking, mask_tokens
from jaxlm.objectives.predictions import (
    cross_entropy,
    map_in_pieces,
    map_predictions,
    sum_in_pieces,
    weighted_sums,
)
from jaxlm.optimizer.schedules import make_schedule
from jaxlm.optimizer.update import plain

SIZE, LENGTH, SLOTS = 40, 16, 6
PAD, BEGIN, END, MASK = SPECIAL = (0, 1, 2, 3)
MASKING = Masking("token", 0.8, 0.1, 0.2, 10, MASK, SIZE, SPECIAL)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def tiny_config():
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=32)
    return config


ENCODER = encoder_config(tiny_config().model, SIZE)


@pytest.fixture(scope="module")
def params():
    return jit(lambda: jax.tree.map(lambda leaf: 5 * leaf, init_params(ENCODER, 0)))()


def text_batch(lengths, length=LENGTH, seed=0):
    """Rows [B, L] of a document each, with so many ordinary tokens and padding behind."""
    random = np.random.default_rng(seed)
    tokens, segment_ids = np.full((len(lengths), length), PAD, np.int32), np.zeros((len(lengths), length), np.int32)
    for row, count in enumerate(lengths):
        tokens[row, : count + 2] = [BEGIN, *random.integers(len(SPECIAL), SIZE, count), END]
        segment_ids[row, : count + 2] = 1
    return {"tokens": tokens, "segment_ids": segment_ids, "word_starts": segment_ids > 0}


hide = jit(lambda keys, *rows: mask_tokens(keys, *rows, 0.4, SLOTS, MASKING))


def masked_batch(lengths):
    """Returns a masked batch of 8 rows and its segment ids; two in five ordinary tokens are to be predicted."""
    batch = text_batch(lengths)
    masked = hide(jax.random.split(jax.random.key(1), 8), *batch.values())
    return jax.tree.map(np.array, masked), batch["segment_ids"]


@functools.partial(jit, static_argnums=(3, 4))
def loss_and_gradients(params, masked, segment_ids, execution=None, logits_bytes=2**28):
    """Returns the sums, and the gradients of the mean loss."""

    def loss(params):
        objective = objective_of(MaskedLanguageModel, execution, logits_bytes)
        sums = objective.sums(params, (masked, segment_ids), None)
        return mean_loss(sums), sums

    (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return sums, gradients


def objective_of(kind, execution=None, logits_bytes=2**28):
    return kind(MaskedLM(ENCODER, execution or Execution()), MASKING, 0.4, None, 0.4, logits_bytes, None)


def mean_loss(sums):
    """Returns nats per prediction, as the step reports them."""
    totals = sums | {"ordinary_tokens": jnp.ones(()), "dropped_words": jnp.zeros(())}
    return objective_of(MaskedLanguageModel).report(totals)["loss"]


def assert_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def reference(logits, labels):
    """Cross entropy in float64, its gradient, and whether the label has the highest logit."""
    logits = np.asarray(logits, np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    shares = shifted / shifted.sum(-1, keepdims=True)
    own = np.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    nats = np.log(shifted.sum(-1)) + logits.max(-1) - own
    return nats, shares - np.eye(logits.shape[1])[labels], own == logits.max(-1)


entropy_with_gradient = jit(jax.value_and_grad(lambda logits, labels: cross_entropy(logits, labels)[0].sum()))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]))
def test_cross_entropy_and_its_gradient_are_the_reference(seed, scale):
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(7, 11))).astype(np.float32)
    labels = random.integers(0, 11, 7)
    nats, gradient, best = reference(logits, labels)
    rounding = 1e-5 + 1e-6 * scale  # of logits that nearly cancel
    assert_close(cross_entropy(logits, labels)[0], nats, rtol=1e-5, atol=rounding)
    np.testing.assert_array_equal(cross_entropy(logits, labels)[1], best)
    total, computed = entropy_with_gradient(logits, labels)
    assert_close(total, nats.sum(), rtol=1e-5, atol=rounding)
    assert_close(computed, gradient, rtol=1e-3, atol=1e-5)


def test_the_sums_leave_out_what_has_weight_zero_whatever_its_label():
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, SIZE)).astype(np.float32)
    labels, weights = random.integers(0, SIZE, 8), np.array([1, 0, 1, 1, 0, 0, 1, 1], np.float32)
    labels[0] = logits[0].argmax()
    nats, _, best = reference(logits, labels)
    sums = weighted_sums(logits, labels, weights)
    expected = {"loss": nats @ weights, "correct": best @ weights, "predictions": 5}
    assert_close(sums, expected, rtol=1e-5)
    assert sums["correct"] >= 1
    other = np.where(weights > 0, labels, 0)
    assert_close(weighted_sums(logits, other, weights), sums, rtol=0)


def test_masked_lm_is_the_cross_entropy_of_the_models_logits_at_the_masked_positions(params):
    masked, segment_ids = masked_batch([14, 9, 3, 0, 11, 5, 0, 2])
    logits = jit(MaskedLM(ENCODER).apply)({"params": params}, masked.inputs, segment_ids)  # of every token
    sums, _ = loss_and_gradients(params, masked, segment_ids)
    logits, expected = np.asarray(logits), np.zeros(3)
    for row, slot in zip(*np.nonzero(masked.weights), strict=True):
        nats, _, best = reference(logits[row, masked.masked_positions[row, slot]][None], masked.labels[row, slot, None])
        expected += [nats[0], best[0], 1]
    assert expected[2] >= 9
    found = [sums[name] for name in ("loss", "correct", "predictions")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def largest_logits(function, *args):
    """Returns the most rows of any array [..., V] that the computation holds, its inner computations included."""

    def arrays(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval for variable in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from arrays(inner)

    shapes = [aval.shape for aval in arrays(jax.make_jaxpr(function)(*args).jaxpr) if hasattr(aval, "shape")]
    return max(int(np.prod(shape[:-1])) for shape in shapes if shape and shape[-1] == SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(("logits_bytes", "rows"), [(2**28, 48), (13 * SIZE * 4, 12), (1, 1)])
def test_logits_in_pieces_are_small_and_change_nothing(params, logits_bytes, rows):
    masked, segment_ids = masked_batch([14, 9, 3, 0, 11, 5, 0, 2])  # 48 slots
    whole = loss_and_gradients(params, masked, segment_ids)
    pieces = loss_and_gradients(params, masked, segment_ids, None, logits_bytes)
    assert_close(pieces, whole, rtol=1e-5, atol=1e-5)

    def loss(params):
        objective = objective_of(MaskedLanguageModel, logits_bytes=logits_bytes)
        return objective.sums(params, (masked, segment_ids), None)["loss"]

    assert largest_logits(loss, params) == largest_logits(jax.grad(loss), params) == rows


def test_a_batch_with_every_label_ignored_has_loss_zero_and_zero_gradients(params):
    masked, segment_ids = masked_batch([14] * 8)
    ignored = masked._replace(weights=jnp.zeros_like(masked.weights))
    sums, gradients = loss_and_gradients(params, ignored, segment_ids)
    assert mean_loss(sums) == sums["loss"] == sums["correct"] == sums["predictions"] == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_a_row_of_special_tokens_only_gives_a_finite_loss(params):
    masked, segment_ids = masked_batch([0] * 8)
    assert masked.weights.sum() == 0
    sums, gradients = loss_and_gradients(params, masked, segment_ids)
    assert mean_loss(sums) == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


@pytest.fixture(scope="module")
def five_rows():
    """A masked batch of 5 rows, and the same with 3 rows of padding."""
    masked, segment_ids = masked_batch([14, 9, 3, 1, 11, 0, 0, 0])
    for array in (*masked, segment_ids):
        array[5:] = 0
    assert masked.weights.sum() > 10
    return (jax.tree.map(lambda array: array[:5], masked), segment_ids[:5]), (masked, segment_ids)


def test_5_rows_in_a_batch_of_8_give_what_they_give_alone(params, five_rows):
    alone, filled = (loss_and_gradients(params, *rows) for rows in five_rows)
    assert_close(filled, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rows_of_padding_are_harmless_in_bfloat16_too(params, five_rows):
    sums, gradients = loss_and_gradients(params, *five_rows[1], Execution("bfloat16", "bfloat16"))
    expected_sums, expected = loss_and_gradients(params, *five_rows[1])
    assert sums["predictions"] == expected_sums["predictions"]
    np.testing.assert_allclose(sums["loss"], expected_sums["loss"], rtol=0.02)
    assert optax.global_norm(jax.tree.map(jnp.subtract, gradients, expected)) < 0.1 * optax.global_norm(expected)


@pytest.mark.slow
def test_accumulation_gives_the_gradients_of_the_whole_batch():
    from jaxlm.step import make_train_step  # imports the whole program

    config = tiny_config()
    config.model.update(dropout=0.1, attention_dropout=0.1)
    config.schedule.update(name="constant", warmup=0.0)
    rate = 2.0**-9
    encoder = encoder_config(config.model, SIZE)
    objective = MaskedLanguageModel(MaskedLM(encoder, Execution()), MASKING, 0.9, None, 0.9, 2**28, None)
    schedule = make_schedule(config.schedule, 10)
    params = jit(lambda: init_params(encoder, 0))()
    update = plain(optax.scale(-1.0))  # so that the new parameters tell the gradients
    state = {"params": params, "opt_state": update.init(params)}
    batch, results = text_batch([1, 30, 0, 2, 7, 30, 1, 12], 32), []  # each row a micro-batch, one without predictions
    for accumulate in (1, 8):
        frozen = jax.tree.map(lambda _: False, params)
        step = make_train_step(objective, update, frozen, schedule, 10, rate, accumulate, mask_seed=0)
        knobs = {"mask_rate": np.float32(0.9)}
        step = jit(functools.partial(step, batch=batch, step=np.int32(5), done=np.float32(5), knobs=knobs))
        new, metrics = step(state)
        gradients = jax.tree.map(lambda old, new: (old - new) / rate, params, new["params"])
        fallen = metrics["loss"] - step(new)[1]["loss"]
        np.testing.assert_allclose(fallen, rate * optax.global_norm(gradients) ** 2, rtol=0.1)  # of that very loss
        results.append((gradients, metrics))
    (whole, whole_metrics), (accumulated, metrics) = results
    assert metrics["masked_share"] == pytest.approx(0.9, abs=0.05)
    assert optax.global_norm(whole) > 0.1
    assert_close(accumulated, whole, rtol=1e-3, atol=1e-5)
    assert_close(metrics, whole_metrics, rtol=1e-5)


def test_each_piece_has_its_share_of_every_device():
    rows = jnp.arange(24)
    seen = []

    def sums(piece):
        seen.append(piece[0].shape)
        return piece[0][0], piece[0].sum()

    first, total = sum_in_pieces(sums, (rows,), 1, 3, parts=2)  # two runs of 12, in four pieces of 3 rows each
    assert seen == [(6,)]
    assert int(first) == 0 + 3 + 6 + 9
    assert int(total) == 24 * 23 // 2


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_mapping_in_pieces_keeps_the_order_of_the_rows(parts, most):
    rows = (jnp.arange(24), jnp.arange(24) ** 2)
    found = map_in_pieces(lambda piece: jnp.stack([piece[0], piece[1] + 1], -1), rows, 1, most, parts)
    np.testing.assert_array_equal(found, np.stack([np.arange(24), np.arange(24) ** 2 + 1], -1))


@pytest.mark.slow
def test_mapped_predictions_are_those_of_the_models_logits(params):
    masked, segment_ids = masked_batch([14, 9, 3, 0, 11, 5, 0, 2])
    logits = np.asarray(jit(MaskedLM(ENCODER).apply)({"params": params}, masked.inputs, segment_ids))
    expected = np.take_along_axis(logits, masked.masked_positions[:, :, None], axis=1)
    for logits_bytes in (2**28, 5 * SIZE * 4):
        found = map_predictions(
            MaskedLM(ENCODER), params, masked.inputs, segment_ids, masked.masked_positions, (masked.labels,),
            lambda logits, labels: jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0], logits_bytes,
        )  # fmt: skip
        own = np.take_along_axis(expected, masked.labels[:, :, None], axis=2)[:, :, 0]
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)


def test_causal_loss_is_that_of_each_token_after_those_before_it(params):
    """Against prefixes read in both directions: in one layer the last token's state is the causal one."""
    batch = text_batch([5, 9], LENGTH)
    tokens = batch["tokens"]
    model = MaskedLM(ENCODER, Execution())
    objective = objective_of(CausalLanguageModel)
    sums = jit(lambda: objective.sums(params, objective.prepare(batch, None, {}).rows, None))()
    assert sums["predictions"] == 14
    expected = 0.0
    logits_of = jit(lambda prefix, ids: predict(model, params, encode(model, params, prefix, ids)))
    for row, count in enumerate((5, 9)):
        for length in range(1, count + 1):
            prefix = np.where(np.arange(LENGTH) < length, tokens[row], PAD)[None]
            inside = np.where(np.arange(LENGTH) < length, 1, 0).astype(np.int32)[None]
            logits = np.asarray(logits_of(prefix, inside), np.float64)[0, length - 1]
            expected += np.log(np.exp(logits).sum()) - logits[tokens[row, length]]
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
