"""Classification as an objective: packed examples are what they are alone, and unlabelled slots count for nothing."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.examples import Examples, pack_examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.evaluation.classification import classification_metrics, remark
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.objectives.classify import Classify
from jaxlm.objectives.table import OBJECTIVES
from jaxlm.settings import SETTINGS

SIZE, LENGTH = 60, 32
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def make_objective(pooling="mean", labels=("a", "b", "c"), **model):
    config = default_config()
    config.model.update(layers=2, width=16, heads=2, feed_forward_width=32, **model)
    config.task.pooling = pooling
    encoder = encoder_config(config.model, SIZE)
    return Classify.from_config(
        config, Phase(None, LENGTH, 4), encoder, Execution(), SYNTHETIC_FACTS._replace(labels=labels)
    )


def make_batch(sizes, labels=None, order=None):
    random = np.random.default_rng(0)
    tokens = [random.integers(5, SIZE, size).astype(np.int32) for size in sizes]
    types = [(np.arange(size) > size // 2).astype(np.int32) for size in sizes]
    found = random.integers(0, 3, len(sizes)).astype(np.int32) if labels is None else np.array(labels, np.int32)
    return pack_examples(Examples(tokens, types, found, 0), order or range(len(sizes)), LENGTH, 0, 1)


def grown(objective, factor=10.0):
    return jax.tree.map(lambda leaf: factor * leaf, jit(lambda: objective.init(0))())


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("model", [{}, {"positions": "learned", "token_types": 2, "norm_position": "post"}])
def test_a_packed_examples_logits_are_what_they_are_alone(pooling, model):
    objective = make_objective(pooling, **model)
    params, logits_of = grown(objective), jit(objective.logits)
    sizes = [5, 9, 12, 30, 4, 17, 8]
    packed, place = make_batch(sizes)
    together = np.asarray(logits_of(params, packed))[place[:, 0], place[:, 1]]
    assert len(packed["tokens"]) < len(sizes)
    for number in range(len(sizes)):
        alone, (where,) = make_batch(sizes, order=[number])
        logits = np.asarray(logits_of(params, alone))[where[0], where[1]]
        np.testing.assert_allclose(logits, together[number], rtol=1e-4, atol=1e-4)
    assert np.ptp(together, axis=0).min() > 0.01


@pytest.mark.slow
def test_the_loss_is_the_mean_over_labelled_examples():
    objective = make_objective()
    params = grown(objective)
    batch, place = make_batch([5, 9, 12, 30, 4], labels=[0, 2, -1, 1, 2])
    prepared = objective.prepare(batch, None, {})
    assert float(prepared.weight) == 4
    sums = jit(objective.sums)(params, prepared.rows, None)
    logits = np.asarray(objective.logits(params, batch))[place[:, 0], place[:, 1]]
    metrics = classification_metrics(logits, np.array([0, 2, -1, 1, 2]))
    report = objective.report(sums)
    np.testing.assert_allclose(report["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(report["accuracy"], metrics["accuracy"], rtol=1e-5)
    assert metrics["n"] == 4


@pytest.mark.slow
def test_a_batch_without_labels_has_zero_loss_and_finite_gradients():
    objective = make_objective()
    params = grown(objective)
    batch, _ = make_batch([5, 9], labels=[-1, -1])
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
    logits = [np.asarray(objective.logits(params, batch, dropout)) for dropout in (None, seeds, seeds, seeds + 7)]
    assert (logits[1] == logits[2]).all()
    assert not np.allclose(logits[1], logits[3])
    assert not np.allclose(logits[0], logits[1])


def test_only_the_encoder_of_another_model_is_inherited():
    assert make_objective().inherit({"encoder": 1, "head": 2}) == {"encoder": 1}


@pytest.mark.slow
def test_another_seed_gives_another_head_and_the_same_seed_the_same():
    objective = make_objective()
    heads = [jax.tree.leaves(objective.init(seed)["head"]) for seed in (0, 0, 1)]
    same = [all((a == b).all() for a, b in zip(heads[0], head, strict=True)) for head in heads[1:]]
    assert same == [True, False]


def test_metrics_of_an_empty_set_are_nan_and_ties_go_to_the_first_class():
    nothing = classification_metrics(np.zeros((2, 3)), np.array([-1, -1]))
    assert nothing["n"] == 0
    assert np.isnan(nothing["accuracy"])
    assert classification_metrics(np.zeros((2, 3)), np.array([0, 1])) == {
        "loss": pytest.approx(np.log(3)), "accuracy": 0.5, "majority_accuracy": 0.5, "n": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "n", "text"),
    [
        (0.6, 5000, "not above that of always answering the most frequent label"),
        (0.8, 60, r"with only 60 examples, the 95% interval of the accuracy is ±10\.1 points"),
        (0.8, 5000, "^$"),
        (math.nan, 0, "^$"),
    ],
)
def test_an_accuracy_that_means_little_is_remarked(accuracy, n, text):
    assert re.search(text, remark("dev", {"accuracy": accuracy, "majority_accuracy": 0.6, "n": n}))


def test_the_table_and_the_setting_name_the_same_objectives():
    assert set(OBJECTIVES) == set(SETTINGS["train"]["objective"].choices)
