"""Spans as an objective: packed windows have the loss and the gradients that they have alone."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.task_model import SPAN_HEADS
from jaxlm.objectives.spans import SpanObjective, span_cross_entropy

SIZE, SHAPE = 60, Shape(32, 8)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def make_objective(head="auto", **model):
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=32, **model)
    config.task.head = head
    encoder = encoder_config(config.model, SIZE)
    phase = Phase(None, SHAPE.length, 4, objective="span")
    return SpanObjective.from_config(config, phase, encoder, Execution(), SYNTHETIC_FACTS)


def make_batch(sizes, order=None, weights=None):
    random = np.random.default_rng(0)
    tokens = [random.integers(5, SIZE, size).astype(np.int32) for size in sizes]
    types = [(np.arange(size) > size // 2).astype(np.int32) for size in sizes]
    spans = np.array([sorted(random.integers(0, size, 2)) for size in sizes], np.int32)
    weights = np.ones(len(sizes), np.float32) if weights is None else np.array(weights, np.float32)
    examples = Examples([None] * len(sizes), tokens, types, {"spans": spans, "weights": weights})
    layout = lay_out(examples, list(order or range(len(sizes))), SHAPE)
    return fill_rows(examples, layout, SHAPE, layout.row_count, 0), layout


def grown(objective):
    return jax.tree.map(lambda leaf: 10 * leaf, jit(lambda: objective.init(0))())


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"positions": "learned", "token_types": 2, "norm_position": "post"}])
def test_a_packed_windows_loss_and_gradients_are_those_it_has_alone(model):
    objective = make_objective(**model)
    params = grown(objective)
    gradient_of = jit(jax.value_and_grad(lambda params, rows: objective.sums(params, rows, None)["loss"]))
    sizes = [5, 9, 12, 30, 4, 17, 8]
    packed, _ = make_batch(sizes)
    assert len(packed["tokens"]) < len(sizes)
    loss, gradient = gradient_of(params, packed)
    losses, gradients = zip(*(gradient_of(params, make_batch(sizes, [n])[0]) for n in range(len(sizes))), strict=True)
    assert float(loss) == pytest.approx(float(sum(losses)), rel=1e-4)
    total = jax.tree.map(lambda *leaves: sum(leaves), *gradients)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max() + 1))


def test_the_loss_is_the_mean_cross_entropy_of_both_ends_over_the_segments_own_tokens():
    logits = np.random.default_rng(0).standard_normal((1, 12, 2)).astype(np.float32)
    segment_ids = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0]])
    spans = np.array([[[1, 3], [0, 0], [0, 0]]])
    logits[0, 6] = logits[0, 9] = 50  # of another segment, and of padding
    cross_entropy = jit(span_cross_entropy)
    losses, correct = jax.device_get(cross_entropy(logits, segment_ids, spans))

    def loss(part, wanted):
        part = part.astype(np.float64)
        return np.mean([np.log(np.exp(part[:, end]).sum()) - part[wanted[end], end] for end in (0, 1)])

    np.testing.assert_allclose(losses[0, :2], [loss(logits[0, :5], (1, 3)), loss(logits[0, 5:9], (0, 0))], rtol=1e-5)
    assert np.isfinite(losses).all()
    assert not correct[0, 1]
    logits[0, 1, 0], logits[0, 3, 1] = 9, 9
    assert cross_entropy(logits, segment_ids, spans)[1][0].tolist()[:2] == [True, False]


@pytest.mark.slow
def test_windows_without_a_label_count_for_nothing_and_give_finite_gradients():
    objective = make_objective()
    params = grown(objective)
    sums = jit(lambda params, rows: objective.sums(params, rows, None))
    one, all_of_them = make_batch([5, 9, 12], weights=[0, 1, 0])[0], make_batch([5, 9, 12], [1])[0]
    for name, value in sums(params, one).items():
        assert float(value) == pytest.approx(float(sums(params, all_of_them)[name]), rel=1e-4), name
    assert float(objective.prepare(one, None, {}).weight) == 1
    none = make_batch([5, 9], weights=[0, 0])[0]
    gradients = jit(jax.grad(lambda params: objective.sums(params, none, None)["loss"]))(params)
    assert float(sums(params, none)["loss"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("head", list(SPAN_HEADS))
def test_every_familys_head_gives_two_logits_for_each_token(head):
    objective = make_objective(head, dropout=0.1)
    batch, _ = make_batch([5, 9])
    assert jax.eval_shape(lambda: objective.outputs(objective.init(0), batch)).shape == (1, 32, 2)
    assert objective.dropout


def test_what_is_inherited_from_another_model():
    bert, modern = make_objective("bert"), make_objective("modernbert")
    mlm = {"transform": 3, "norm": 4, "bias": 5}
    assert bert.inherit({"encoder": 1, "head": mlm, "pooler": 9}) == {"encoder": 1}
    assert bert.inherit({"encoder": 1, "task_head": 2}) == {"encoder": 1, "head": 2}
    assert modern.inherit({"encoder": 1, "head": mlm}) == {"encoder": 1, "head": {"transform": 3, "norm": 4}}
