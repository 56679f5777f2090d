"""The step and its assembly know no task, and describe their arguments as every objective needs them."""

import re

import jax
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Evaluator, before_and_after, selector
from jaxlm.model.config import encoder_config
from jaxlm.objectives.sequences import SequenceObjective
from jaxlm.objectives.table import OBJECTIVES
from jaxlm.performance.bench import synthetic_batch
from jaxlm.runtime import sharding
from jaxlm.step import assemble, run_seeds
from tests.conftest import ROOT


def small_config(objective):
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=32, vocab_size=60, dropout=0.1)
    config.train.update(objective=objective, batch_size=4, compute_dtype="float32")
    config.data.sequence_length = 16
    return config


def make_assembly(config):
    mesh = sharding.make_mesh(config.mesh)
    return assemble(config, encoder_config(config.model), SYNTHETIC_FACTS, mesh, "cpu")


@pytest.mark.parametrize("file", ["trainer.py", "step.py", "run.py", "performance/bench.py", "performance/plan.py"])
def test_no_objective_is_named_outside_its_file_and_the_tables(file):
    text = (ROOT / "jaxlm" / file).read_text()
    named = re.findall(rf"[\"']({'|'.join(OBJECTIVES)})[\"']|\b(MaskedLM|MaskedLanguageModel|Classify)\b", text)
    assert not named


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_compiled_from_shapes_trains_on_a_batch(objective):
    assembly = make_assembly(small_config(objective))
    arguments = assembly.abstract_arguments(0)
    options = {"xla_backend_optimization_level": 0}  # tests mostly compile
    compiled = assembly.compile(assembly.lower(assembly.train_step(0, 100), *arguments), **options)
    state = assembly.fresh_state()
    before = jax.tree.map(np.asarray, state["params"])
    batch = synthetic_batch(assembly.objectives[0].columns(16), 4, 16, documents=2, padding=0.25)
    knobs = {name: np.float32(knob) for name, knob in assembly.objectives[0].knobs(0.0).items()}
    state, metrics = compiled(state, batch, np.int32(0), np.float32(0), knobs)
    assert np.isfinite(float(metrics["loss"]))
    assert int(metrics["padding"]) == 4 * 4
    moved = jax.tree.map(lambda old, new: bool((old != np.asarray(new)).any()), before, state["params"])
    assert any(jax.tree.leaves(moved["head"])) if "head" in moved else objective == "embedding"
    assert any(jax.tree.leaves(moved["encoder"]))


def test_a_loss_that_does_not_add_gets_the_whole_batch(monkeypatch):
    config = small_config("classification")
    config.train.accumulate = 2
    assembly = make_assembly(config)
    seen = []

    def traced_rows():
        seen.clear()
        sums = SequenceObjective.sums
        monkeypatch.setattr(SequenceObjective, "sums", lambda *args: seen.append(len(args[2]["tokens"])) or sums(*args))
        jax.eval_shape(assembly.train_step(0, 100), *assembly.abstract_arguments(0))
        monkeypatch.setattr(SequenceObjective, "sums", sums)
        return min(seen)

    assert traced_rows() == 2
    monkeypatch.setattr(SequenceObjective, "additive", False)
    assert traced_rows() == 4


def test_seeds_are_the_runs_unless_they_are_set():
    config = default_config()
    config.train.update(seed=3, mask_seed=5)
    assert run_seeds(config) == {"init": 3, "data": 3, "mask": 5}


def test_the_first_evaluator_that_selects_chooses_the_best_checkpoint():
    silent, first, second = (
        Evaluator(name, 0, lambda params, number: {}, lambda name, metrics: name, selects, higher)
        for name, selects, higher in [("a", "", False), ("b", "accuracy", True), ("c", "loss", False)]
    )
    assert selector([silent, first, second]) is first
    assert selector([silent]) is None
    assert selector([]) is None


def test_before_and_after_leaves_unknown_figures_open():
    table = before_and_after({"a": {"loss": 2.5, "accuracy": None}}, {"a": {"loss": 1.25, "accuracy": 0.5}})
    assert re.search(r"a +2\.500 +1\.250 +nan% +50\.0%", table)
    assert "nan" in before_and_after({}, {"a": {"pearson": 0.5}})  # a set may have other metrics


def test_a_run_far_beyond_the_memory_is_rejected_before_anything_is_allocated():
    config = small_config("masked")
    config.train.batch_size = 2**26
    config.data.sequence_length = 2**16
    with pytest.raises(UserError, match=r"would take at least [\d,.]+ GiB on each device, which has"):
        make_assembly(config).fresh_state()
    config = small_config("masked")
    config.model.update(width=2**20, heads=2**10, feed_forward_width=2**22)
    with pytest.raises(UserError, match="would take at least"):
        make_assembly(config).fresh_state()


def test_the_least_memory_of_a_step_counts_the_state_the_gradients_and_the_batch():
    assembly = make_assembly(small_config("masked"))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(assembly.abstract_state["params"]))
    assert 16 * parameters < assembly.least_bytes < 16 * parameters + 8000
