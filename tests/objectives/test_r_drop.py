"""R-Drop: two passes with different dropout, and the symmetric divergence of their answers."""

import re

import jax
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.objectives.r_drop import RDrop, divergence, seeds_of_pass
from tests.objectives.test_sequences import grown, jit, make_batch, make_objective
from tests.test_step import make_assembly, small_config

RANDOM = np.random.default_rng(0)


def test_the_divergence_of_classes_is_the_mean_of_both_directions():
    from scipy.stats import entropy

    first, second = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    p, q = (np.asarray(jax.nn.softmax(one)) for one in (first, second))
    expected = [(entropy(a, b) + entropy(b, a)) / 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(divergence("classification", first, second), expected, rtol=1e-4)
    np.testing.assert_allclose(divergence("classification", first + 7, second), expected, rtol=1e-4)
    assert (np.asarray(divergence("classification", first, first)) == 0).all()


def test_the_divergence_of_several_labels_and_of_numbers():
    from scipy.stats import entropy

    first, second = RANDOM.normal(size=(2, 4, 3)).astype(np.float32)
    p, q = (np.stack([one, 1 - one]) for one in (1 / (1 + np.exp(-first)), 1 / (1 + np.exp(-second))))
    expected = (entropy(p, q) + entropy(q, p)).mean(-1) / 2
    np.testing.assert_allclose(divergence("multi_label", first, second), expected, rtol=1e-4)
    one = divergence("multi_label", first[:, :1], second[:, :1])
    np.testing.assert_array_equal(divergence("reranking", first[:, :1], second[:, :1]), one)
    assert (np.asarray(one) > 0).all()
    np.testing.assert_allclose(divergence("regression", first[:, :1], second[:, :1]), (first - second)[:, 0] ** 2)


def test_each_pass_of_each_row_has_seeds_of_its_own_which_depend_on_nothing_else():
    seeds = RANDOM.integers(0, 2**32, (6, 2), dtype=np.uint32)
    passes = [np.asarray(seeds_of_pass(seeds, number)) for number in (0, 1, 2)]
    assert (passes[0] == seeds).all()
    assert len({tuple(seed) for one in passes for seed in one.tolist()}) == 18
    np.testing.assert_array_equal(seeds_of_pass(seeds[2:4], 1), passes[1][2:4])


@pytest.mark.slow
def test_the_loss_is_the_mean_of_both_passes_plus_their_divergence():
    inner = make_objective(dropout=0.3)
    objective, params = RDrop(inner, 4.0), grown(inner, 3.0)
    batch, layout = make_batch([5, 9, 12], weights=[1, 0, 2])
    seeds = RANDOM.integers(0, 2**32, (len(batch["tokens"]), 2), dtype=np.uint32)
    sums = jit(objective.sums)(params, batch, seeds)
    passes = [seeds_of_pass(seeds, number) for number in (0, 1)]
    alone = [jit(inner.sums)(params, batch, one) for one in passes]
    outputs = [np.asarray(jit(inner.outputs)(params, batch, one))[layout.rows, layout.slots] for one in passes]
    assert not np.allclose(*outputs)  # the masks differ
    apart = float((divergence("classification", *outputs) * np.array([1, 0, 2])).sum())
    assert apart > 1e-3
    assert float(sums["divergence"]) == pytest.approx(apart, rel=1e-4)
    mean = sum(float(one["loss"]) for one in alone) / 2
    assert float(sums["loss"]) == pytest.approx(mean + 4 / 2 * apart, rel=1e-4)
    assert float(sums["weight"]) == 3
    report = objective.report(sums)
    assert float(report["divergence"]) == pytest.approx(apart / 3, rel=1e-4)
    np.testing.assert_array_equal(objective.outputs(params, batch), inner.outputs(params, batch))


def test_what_r_drop_does_not_apply_to_is_refused():
    config = small_config("classification")
    config.task.r_drop = 1.0
    assembly = make_assembly(config)
    assert assembly.objectives[0].describe() == "classification with R-Drop"
    assert assembly.objectives[0].flops(4, 16, 64, {}) == 2 * assembly.objectives[0].inner.flops(4, 16, 64, {})
    config.model.update(dropout=0.0, attention_dropout=0.0)
    with pytest.raises(UserError, match=re.escape("task.r_drop=1 compares two passes with different dropout")):
        make_assembly(config)
    config = small_config("masked")
    config.task.r_drop = 1.0
    with pytest.raises(UserError, match=re.escape("task.r_drop does not apply to train.objective=masked; remove it")):
        make_assembly(config)
