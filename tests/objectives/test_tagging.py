"""Tags as an objective: the tags of a packed sentence are those it has alone; the loss is the mean over words."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.evaluation.tagging import Tagging
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.task_model import TOKEN_HEADS
from jaxlm.objectives.tagging import TaggingObjective

SIZE, SHAPE = 60, Shape(32, 8)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def make_objective(head="auto", smoothing=0.0, **model):
    config = default_config()
    config.model.update(layers=2, width=16, heads=2, feed_forward_width=32, **model)
    config.task.update(head=head, label_smoothing=smoothing)
    encoder = encoder_config(config.model, SIZE)
    phase = Phase(None, SHAPE.length, 4, objective="tagging")
    facts = SYNTHETIC_FACTS._replace(labels=("B-X", "I-X", "O"))
    return TaggingObjective.from_config(config, phase, encoder, Execution(), facts)


def make_batch(sizes, order=None, weight=1.0):
    """Returns the packed batch, where its segments are, and the examples; every second token begins a word."""
    random = np.random.default_rng(0)
    tokens = [random.integers(5, SIZE, size).astype(np.int32) for size in sizes]
    words = [np.where(np.arange(size) % 2, np.arange(size) // 2 + 1, 0).astype(np.int32) for size in sizes]
    labels = [np.where(number > 0, random.integers(0, 3, len(number)), 0).astype(np.int32) for number in words]
    weights = [(number > 0) * np.float32(weight) for number in words]
    columns = {"words": words, "labels": labels, "weights": weights}
    types = [np.zeros(size, np.int32) for size in sizes]
    examples = Examples([None] * len(sizes), tokens, types, {}, columns, np.arange(len(sizes)))
    layout = lay_out(examples, list(order or range(len(sizes))), SHAPE)
    return fill_rows(examples, layout, SHAPE, layout.row_count, 0), layout, examples


def grown(objective, factor=10.0):
    return jax.tree.map(lambda leaf: factor * leaf, jit(lambda: objective.init(0))())


def of_segment(array, layout, number, size):
    start = layout.starts[number]
    return np.asarray(array)[layout.rows[number], start : start + size]


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"positions": "learned", "token_types": 2, "norm_position": "post"}])
def test_a_packed_sentences_outputs_and_gradients_are_those_it_has_alone(model):
    objective = make_objective(**model)
    params, outputs_of = grown(objective), jit(objective.outputs)
    gradient_of = jit(jax.grad(lambda params, rows: objective.sums(params, rows, None)["loss"]))
    sizes = [5, 9, 12, 30, 4, 17, 8]
    packed, layout, _ = make_batch(sizes)
    assert len(packed["tokens"]) < len(sizes)
    together, total = outputs_of(params, packed), None
    for number, size in enumerate(sizes):
        alone, where, _ = make_batch(sizes, order=[number])
        outputs = of_segment(outputs_of(params, alone), where, 0, size)
        np.testing.assert_allclose(outputs, of_segment(together, layout, number, size), rtol=1e-4, atol=1e-4)
        gradient = gradient_of(params, alone)
        total = gradient if total is None else jax.tree.map(np.add, total, gradient)
    for one, other in zip(jax.tree.leaves(gradient_of(params, packed)), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max() + 1))


@pytest.mark.slow
def test_the_loss_is_the_mean_over_words_as_torch_and_the_evaluation_compute_it():
    torch = pytest.importorskip("torch")
    objective = make_objective(smoothing=0.2)
    params = grown(objective)
    batch, _, _ = make_batch([5, 9, 12], weight=2.0)
    prepared = objective.prepare(batch, None, {})
    words = (batch["words"] > 0).sum()
    assert float(prepared.weight) == 2 * words
    report = objective.report(objective.sums(params, prepared.rows, None))
    logits = torch.tensor(np.asarray(objective.outputs(params, batch)).reshape(-1, 3))
    labels = torch.tensor(np.where(batch["words"] > 0, batch["labels"], -100).reshape(-1)).long()
    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    np.testing.assert_allclose(report["loss"], float(loss), rtol=1e-5)
    right = (logits.argmax(-1) == labels)[labels >= 0].float().mean()
    np.testing.assert_allclose(report["accuracy"], float(right), rtol=1e-5)
    found = Tagging().outputs(objective, params, batch)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    known = batch["words"].reshape(-1) > 0
    losses = np.asarray(found["losses"]).reshape(-1)[known]
    np.testing.assert_allclose(losses, plain[torch.tensor(known)], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dropout_acts_on_every_kind_of_head():
    for head in {style: name for name, style in TOKEN_HEADS.items()}.values():
        objective = make_objective(head, dropout=0.5)
        params = objective.init(0)
        batch, _, _ = make_batch([5, 9])
        seeds = np.arange(2 * len(batch["tokens"]), dtype=np.uint32).reshape(-1, 2)
        plain, dropped = (np.asarray(objective.outputs(params, batch, dropout)) for dropout in (None, seeds))
        assert plain.shape == (1, 32, 3)
        assert not np.allclose(plain, dropped)


def test_a_batch_has_the_columns_that_the_objective_names():
    objective = make_objective()
    batch, _, _ = make_batch([5, 9])
    columns = objective.columns(SHAPE.length)
    assert {name: array.shape[1:] for name, array in batch.items()} == {n: c.shape for n, c in columns.items()}
    assert {name: array.dtype for name, array in batch.items()} == {n: c.dtype for n, c in columns.items()}


def test_what_is_inherited_from_another_model():
    own, modern = make_objective("bert"), make_objective("modernbert")
    mlm = {"transform": 3, "norm": 4, "bias": 5}
    assert own.inherit({"encoder": 1, "head": mlm, "pooler": 9}) == {"encoder": 1}
    assert own.inherit({"encoder": 1, "task_head": 2}) == {"encoder": 1, "head": 2}
    assert modern.inherit({"encoder": 1, "head": mlm}) == {"encoder": 1, "head": {"transform": 3, "norm": 4}}
