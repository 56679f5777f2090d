"""Classes and numbers as objectives: packed examples are what they are alone; no label counts for nothing."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.data.tasks.table import KINDS
from jaxlm.evaluation.task_sets import TASKS
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.task_model import SEGMENT_HEADS
from jaxlm.objectives.sequences import SequenceObjective
from jaxlm.objectives.table import OBJECTIVES
from jaxlm.settings import SETTINGS

SIZE, SHAPE = 60, Shape(32, 8)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def make_objective(pooling="mean", labels=("a", "b", "c"), kind="classification", head="auto", smoothing=0.0, **model):
    config = default_config()
    config.model.update(layers=2, width=16, heads=2, feed_forward_width=32, **model)
    config.task.update(pooling=pooling, head=head, label_smoothing=smoothing)
    encoder = encoder_config(config.model, SIZE)
    phase = Phase(None, SHAPE.length, 4, objective=kind)
    return SequenceObjective.from_config(config, phase, encoder, Execution(), SYNTHETIC_FACTS._replace(labels=labels))


def make_batch(sizes, labels=None, order=None, weights=None):
    """Returns the packed batch and where its segments are, in order."""
    random = np.random.default_rng(0)
    tokens = [random.integers(5, SIZE, size).astype(np.int32) for size in sizes]
    types = [(np.arange(size) > size // 2).astype(np.int32) for size in sizes]
    found = random.integers(0, 3, len(sizes)).astype(np.int32) if labels is None else np.array(labels)
    weights = np.ones(len(sizes), np.float32) if weights is None else np.array(weights, np.float32)
    examples = Examples([None] * len(sizes), tokens, types, {"labels": found, "weights": weights})
    layout = lay_out(examples, list(order or range(len(sizes))), SHAPE)
    return fill_rows(examples, layout, SHAPE, layout.row_count, 0), layout


def grown(objective, factor=10.0):
    return jax.tree.map(lambda leaf: factor * leaf, jit(lambda: objective.init(0))())


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("model", [{}, {"positions": "learned", "token_types": 2, "norm_position": "post"}])
def test_a_packed_examples_outputs_and_gradients_are_those_it_has_alone(pooling, model):
    objective = make_objective(pooling, **model)
    params, outputs_of = grown(objective), jit(objective.outputs)
    gradient_of = jit(jax.grad(lambda params, rows: objective.sums(params, rows, None)["loss"]))
    sizes = [5, 9, 12, 30, 4, 17, 8]
    packed, layout = make_batch(sizes)
    together = np.asarray(outputs_of(params, packed))[layout.rows, layout.slots]
    assert len(packed["tokens"]) < len(sizes)
    total = None
    for number in range(len(sizes)):
        alone, where = make_batch(sizes, order=[number])
        outputs = np.asarray(outputs_of(params, alone))[where.rows, where.slots][0]
        np.testing.assert_allclose(outputs, together[number], rtol=1e-4, atol=1e-4)
        gradient = gradient_of(params, alone)
        total = gradient if total is None else jax.tree.map(np.add, total, gradient)
    for one, other in zip(jax.tree.leaves(gradient_of(params, packed)), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max() + 1))
    assert np.ptp(together, axis=0).min() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("head", list(SEGMENT_HEADS))
def test_every_familys_head_runs_and_depends_on_its_seed(head):
    objective = make_objective("cls", head=head)
    heads = [jax.tree.leaves(objective.init(seed)["head"]) for seed in (0, 0, 1)]
    same = [all((a == b).all() for a, b in zip(heads[0], other, strict=True)) for other in heads[1:]]
    assert same == [True, False]
    batch, _ = make_batch([5, 9])
    assert objective.outputs(objective.init(0), batch).shape == (1, 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("classification", np.array([0, 2, 0, 1, 2], np.int32)),
        ("multi_label", np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]], np.float32)),
        ("regression", np.array([0.5, -2, 0, 1.5, 3], np.float32)),
    ],
)
def test_the_loss_is_the_mean_over_labelled_examples(kind, labels):
    objective, evaluation = make_objective(kind=kind), TASKS[kind]
    params = grown(objective)
    weights = [1, 1, 0, 1, 1]
    batch, layout = make_batch([5, 9, 12, 30, 4], labels, weights=weights)
    prepared = objective.prepare(batch, None, {})
    assert float(prepared.weight) == 4
    report = objective.report(jit(objective.sums)(params, prepared.rows, None))
    outputs = np.asarray(objective.outputs(params, batch))[layout.rows, layout.slots]
    examples = Examples([None] * 5, [], [], {"labels": labels, "weights": np.array(weights)})
    metrics = evaluation.measure({"outputs": list(outputs)}, examples, ("a", "b", "c"), None)
    np.testing.assert_allclose(report["loss"], metrics["loss"], rtol=1e-5)
    assert metrics["n"] == 4
    if kind == "classification":
        np.testing.assert_allclose(report["accuracy"], metrics["accuracy"], rtol=1e-5)


@pytest.mark.slow
def test_weights_and_smoothing_are_those_of_torch():
    torch = pytest.importorskip("torch")
    labels, weights = np.array([0, 2, 1, 1], np.int32), [1.0, 3.0, 0.5, 0.5]
    batch, layout = make_batch([5, 9, 12, 30], labels, weights=weights)
    for smoothing in (0.0, 0.2):
        objective = make_objective(smoothing=smoothing)
        params = grown(objective)
        loss = float(objective.report(objective.sums(params, batch, None))["loss"])
        outputs = torch.tensor(np.asarray(objective.outputs(params, batch))[layout.rows, layout.slots])
        losses = torch.nn.functional.cross_entropy(
            outputs, torch.tensor(labels).long(), label_smoothing=smoothing, reduction="none"
        )
        assert loss == pytest.approx(float((losses * torch.tensor(weights)).sum() / sum(weights)), rel=1e-5)


@pytest.mark.slow
def test_a_batch_without_labels_has_zero_loss_and_finite_gradients():
    objective = make_objective()
    params = grown(objective)
    batch, _ = make_batch([5, 9], weights=[0, 0])
    loss, gradients = jax.value_and_grad(lambda params: objective.sums(params, batch, None)["loss"])(params)
    assert loss == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_dropout_acts_on_the_head_too():
    objective = make_objective(dropout=0.5)
    params = grown(objective)
    batch, _ = make_batch([5, 9, 12])
    seeds = np.arange(2 * len(batch["tokens"]), dtype=np.uint32).reshape(-1, 2)
    assert objective.dropout
    outputs = [np.asarray(objective.outputs(params, batch, dropout)) for dropout in (None, seeds, seeds, seeds + 7)]
    assert (outputs[1] == outputs[2]).all()
    assert not np.allclose(outputs[1], outputs[3])
    assert not np.allclose(outputs[0], outputs[1])


def test_what_is_inherited_from_another_model():
    own, bert, modern = make_objective(), make_objective(head="bert"), make_objective(head="modernbert")
    mlm = {"transform": 3, "norm": 4, "bias": 5}
    assert own.inherit({"encoder": 1, "head": {}}) == {"encoder": 1}
    assert own.inherit({"encoder": 1, "task_head": 2, "pooler": 9}) == {"encoder": 1, "head": 2}
    assert bert.inherit({"encoder": 1, "head": mlm, "pooler": 9}) == {"encoder": 1, "head": {"transform": 9}}
    assert modern.inherit({"encoder": 1, "head": mlm}) == {"encoder": 1, "head": {"transform": 3, "norm": 4}}


def test_the_tables_and_the_setting_name_the_same_objectives():
    assert set(OBJECTIVES) == set(SETTINGS["train"]["objective"].choices)
    assert set(KINDS) == set(TASKS) == set(OBJECTIVES) - {"masked", "causal"}
