"""Classes by the word at the mask: packed examples are what they are alone, and logits those of the masked-LM head."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.heads import encode, predict
from jaxlm.objectives.template import TemplateObjective

SIZE, SHAPE, MASK = 60, Shape(32, 8), SYNTHETIC_FACTS.mask_id
SIZES, WORDS = [5, 9, 12, 30, 4, 17, 8], ((7, 9), (8,), (11,))
BERT = {"positions": "learned", "token_types": 2, "norm_position": "post"}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def make_objective(softmax="labels", smoothing=0.0, megabytes=256, **model):
    config = default_config()
    config.model.update(layers=2, width=16, heads=2, feed_forward_width=32, **model)
    config.task.update(softmax=softmax, label_smoothing=smoothing)
    config.train.logits_megabytes = megabytes
    encoder = encoder_config(config.model, SIZE)
    phase = Phase(None, SHAPE.length, 4, objective="template")
    facts = SYNTHETIC_FACTS._replace(labels=("a", "b", "c"), label_tokens=WORDS)
    return TemplateObjective.from_config(config, phase, encoder, Execution(), facts)


def make_batch(order=None, weights=None):
    """Returns a packed batch whose segments have one mask each, and where they are, in order."""
    random = np.random.default_rng(0)
    tokens = [random.integers(5, SIZE, size).astype(np.int32) for size in SIZES]
    for row in tokens:
        row[random.integers(len(row))] = MASK
    labels = random.integers(0, 3, len(SIZES)).astype(np.int32)
    weights = np.ones(len(SIZES), np.float32) if weights is None else np.array(weights, np.float32)
    types = [np.zeros_like(row) for row in tokens]
    examples = Examples([None] * len(SIZES), tokens, types, {"labels": labels, "weights": weights})
    layout = lay_out(examples, list(order or range(len(SIZES))), SHAPE)
    return fill_rows(examples, layout, SHAPE, layout.row_count, 0), layout, examples


def grown(objective, factor=10.0):
    return jax.tree.map(lambda leaf: factor * leaf, jit(lambda: objective.init(0))())


def logits_at_masks(objective, params, examples):
    """Returns the vocabulary logits float64 [n, V] at the mask of each segment, one text at a time."""
    found = []
    for tokens in examples.tokens:
        logits = predict(objective.model, params, encode(objective.model, params, tokens[None]))
        found.append(np.asarray(logits[0, np.flatnonzero(tokens == MASK)[0]], np.float64))
    return np.stack(found)


def class_logits(logits):
    return np.stack([np.log(np.exp(logits[:, list(words)]).sum(-1)) for words in WORDS], -1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, BERT | {"head_transform": False, "tied_output": False}])
@pytest.mark.parametrize("softmax", ["labels", "vocabulary"])
def test_a_packed_examples_outputs_and_gradients_are_those_it_has_alone(softmax, model):
    objective = make_objective(softmax, **model)
    params, outputs_of = grown(objective), jit(objective.outputs)
    gradient_of = jit(jax.grad(lambda params, rows: objective.sums(params, rows, None)["loss"]))
    packed, layout, _ = make_batch()
    together = np.asarray(outputs_of(params, packed))[layout.rows, layout.slots]
    assert len(packed["tokens"]) < len(SIZES)
    total = None
    for number in range(len(SIZES)):
        alone, where, _ = make_batch([number])
        outputs = np.asarray(outputs_of(params, alone))[where.rows, where.slots][0]
        np.testing.assert_allclose(outputs, together[number], rtol=1e-4, atol=1e-4)
        gradient = gradient_of(params, alone)
        total = gradient if total is None else jax.tree.map(np.add, total, gradient)
    for one, other in zip(jax.tree.leaves(gradient_of(params, packed)), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max() + 1))
    assert np.ptp(together, axis=0).min() > 0.01


@pytest.mark.parametrize("softmax", ["labels", "vocabulary"])
def test_the_loss_is_that_of_the_masked_lm_head_at_the_mask(softmax):
    objective = make_objective(softmax, **BERT)
    params = grown(objective)
    batch, layout, examples = make_batch(weights=[1, 1, 0, 2, 1, 1, 1])
    logits, (labels, weights) = logits_at_masks(objective, params, examples), examples.columns.values()
    classes = class_logits(logits)
    outputs = np.asarray(jit(objective.outputs)(params, batch))[layout.rows, layout.slots]
    np.testing.assert_allclose(outputs, classes, rtol=1e-4, atol=1e-4)
    compared = classes if softmax == "labels" else logits
    losses = np.log(np.exp(compared).sum(-1)) - classes[np.arange(len(labels)), labels]
    prepared = objective.prepare(batch, None, {})
    assert float(prepared.weight) == 7
    report = objective.report(jit(objective.sums)(params, prepared.rows, None))
    assert float(report["loss"]) == pytest.approx((losses * weights).sum() / weights.sum(), rel=1e-4)
    right = (classes.argmax(-1) == labels)[weights > 0]
    assert float(report["accuracy"]) == pytest.approx(right.mean())


@pytest.mark.slow
def test_vocabulary_logits_in_pieces_give_the_same_gradients():
    batch, _, _ = make_batch()
    whole = make_objective("vocabulary")
    params = grown(whole)
    parts = TemplateObjective(whole.model, MASK, WORDS, True, 0.0, logits_bytes=4 * SIZE * 8)
    gradients = [
        jit(jax.grad(lambda params, one=one: one.sums(params, batch, None)["loss"]))(params) for one in (whole, parts)
    ]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_smoothing_spreads_probability_over_the_labels():
    plain, smooth = make_objective(), make_objective(smoothing=0.3)
    params = grown(plain)
    batch, layout, examples = make_batch()
    outputs = np.asarray(jit(plain.outputs)(params, batch))[layout.rows, layout.slots].astype(np.float64)
    log_p = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    wanted = 0.7 * np.eye(3)[examples.columns["labels"]] + 0.1
    loss = float(smooth.report(jit(smooth.sums)(params, batch, None))["loss"])
    assert loss == pytest.approx(-(wanted * log_p).sum(-1).mean(), rel=1e-4)
    with pytest.raises(UserError, match=r"task\.label_smoothing .* which task\.softmax=vocabulary does not"):
        make_objective("vocabulary", 0.1)


@pytest.mark.slow
def test_dropout_acts_and_a_batch_without_labels_has_no_gradient():
    objective = make_objective(dropout=0.5)
    params = grown(objective)
    batch, _, _ = make_batch(weights=[0] * len(SIZES))
    seeds = np.arange(2 * len(batch["tokens"]), dtype=np.uint32).reshape(-1, 2)
    assert objective.dropout
    outputs = [np.asarray(objective.outputs(params, batch, dropout)) for dropout in (None, seeds, seeds, seeds + 7)]
    assert (outputs[1] == outputs[2]).all()
    assert not np.allclose(outputs[1], outputs[3])
    assert not np.allclose(outputs[0], outputs[1])
    loss, gradients = jax.value_and_grad(lambda params: objective.sums(params, batch, None)["loss"])(params)
    assert loss == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_head_of_the_masked_language_model_is_inherited():
    objective = make_objective()
    given = {"encoder": 1, "head": 2, "pooler": 3, "task_head": 4}
    assert objective.inherit(given) == {"encoder": 1, "head": 2}
    assert objective.init(0).keys() == {"encoder", "head"}
    assert objective.predicts_tokens
