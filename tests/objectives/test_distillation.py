"""Distillation: the divergence from the teacher's probabilities, the distance of states, and no effect of padding."""

import jax
import numpy as np
import pytest

from jaxlm.objectives.distillation import OUTPUTS, STATES, Distillation, state_distances, taught_losses
from tests.objectives.test_sequences import grown, jit, make_batch, make_objective
from tests.test_step import make_assembly, small_config

RANDOM = np.random.default_rng(0)


def test_the_losses_of_classes_and_of_several_labels_are_divergences_at_a_temperature():
    from scipy.stats import entropy

    ours, theirs = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    soft = [np.asarray(jax.nn.softmax(one / 2)) for one in (theirs, ours)]
    expected = [4 * entropy(a, b) for a, b in zip(*soft, strict=True)]
    np.testing.assert_allclose(taught_losses("classification", ours, theirs, 2.0), expected, rtol=1e-4)
    yes = [1 / (1 + np.exp(-one / 2)) for one in (theirs, ours)]
    expected = 4 * entropy(*(np.stack([one, 1 - one]) for one in yes)).mean(-1)
    np.testing.assert_allclose(taught_losses("multi_label", ours, theirs, 2.0), expected, rtol=1e-4)
    squares = (ours - theirs)[:, 0] ** 2
    np.testing.assert_allclose(taught_losses("regression", ours[:, :1], theirs[:, :1], 2.0), squares)
    one = taught_losses("multi_label", ours[:, :1], theirs[:, :1], 2.0)
    np.testing.assert_array_equal(taught_losses("reranking", ours[:, :1], theirs[:, :1], 2.0), one)
    assert (np.asarray(one) > 0).all()
    for target in ("classification", "multi_label", "regression"):
        assert (np.asarray(taught_losses(target, ours, ours, 2.0)) == 0).all()


def test_the_distance_of_states_ignores_their_length_and_is_finite_at_0():
    first = RANDOM.normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(state_distances(first, 7 * first), 0, atol=1e-6)
    np.testing.assert_allclose(state_distances(first, -first), 4, rtol=1e-5)
    gradient = jax.grad(lambda x: state_distances(x, x).sum())(np.zeros((2, 3), np.float32))
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_the_loss_mixes_labels_and_teacher_and_padding_changes_nothing():
    inner = make_objective(pooling="mean")
    batch, layout = make_batch([5, 9, 12], weights=[1, 0, 2])
    shape = (*batch["weights"].shape, 3)
    batch[OUTPUTS] = RANDOM.normal(size=shape).astype(np.float32)
    batch[STATES] = RANDOM.normal(size=(*shape[:2], 16)).astype(np.float32)
    padded = {
        name: np.pad(array, [(0, 1), (0, 8 if name in ("tokens", "segment_ids", "token_types") else 0)]
                     + [(0, 0)] * (array.ndim - 2))
        for name, array in batch.items()
    }  # fmt: skip
    objective, params = Distillation(inner, 0.25, 2.0, 0.5), grown(inner, 3.0)
    sums_of = jit(lambda params, rows: jax.value_and_grad(lambda p: objective.sums(p, rows, None)["loss"])(params))
    (loss, gradient), (again, gradient_again) = sums_of(params, batch), sums_of(params, padded)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(one).max() + 1))

    sums = jit(objective.sums)(params, batch, None)
    outputs, states = (np.asarray(one)[layout.rows, layout.slots] for one in jit(inner.forward)(params, batch))
    teacher, target = (batch[name][layout.rows, layout.slots] for name in (OUTPUTS, STATES))
    weights = np.array([1, 0, 2])
    taught = float((taught_losses("classification", outputs, teacher, 2.0) * weights).sum())
    apart = float((state_distances(states, target) * weights).sum())
    labels = float(jit(inner.sums)(params, batch, None)["loss"])
    assert float(loss) == pytest.approx(0.75 * labels + 0.25 * taught + 0.5 * apart, rel=1e-4)
    report = objective.report(sums)
    assert float(report["teacher_loss"]) == pytest.approx(taught / 3, rel=1e-4)
    assert float(report["states_loss"]) == pytest.approx(apart / 3, rel=1e-4)


def test_the_columns_of_a_batch_have_what_the_teacher_says():
    config = small_config("classification")
    config.task.update(teacher="somewhere", r_drop=1.0)
    objective = make_assembly(config).objectives[0]
    assert objective.columns(16)[OUTPUTS].shape == (4, 2)
    assert STATES not in objective.columns(16)
    assert objective.describe() == "classification with a teacher with R-Drop"
    config.task.teacher_states = 1.0
    assert make_assembly(config).objectives[0].columns(16)[STATES].shape == (4, 16)
