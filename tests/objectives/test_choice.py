"""Multiple choice as an objective: a softmax over the choices of each example, wherever they are packed."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.evaluation.choice import Choice
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.objectives.choice import ChoiceObjective

SIZE, SHAPE = 60, Shape(32, 8)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


@pytest.mark.slow
def test_the_loss_is_that_of_the_evaluation_whole_and_in_chunks():
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=32)
    config.task.choices = ("a", "b", "c")
    random = np.random.default_rng(0)
    example = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    tokens = [random.integers(5, SIZE, size).astype(np.int32) for size in random.integers(5, 20, len(example))]
    columns = {
        "role": np.array([0, 1, 2, 0, 2, 0, 1, 2, 0, 1], np.int32),
        "labels": np.array([2, 1, 0, 1], np.int32)[example] + (example == 1),  # the second choice is missing there
        "weights": np.array([1, 1, 1, 0], np.float32)[example],
    }
    columns["labels"] = columns["labels"].astype(np.int32)
    examples = Examples([None] * 4, tokens, [np.zeros_like(t) for t in tokens], columns, example=example)
    layout = lay_out(examples, range(len(example)), SHAPE)
    batch = fill_rows(examples, layout, SHAPE, 8, 0)
    found = []
    for chunks in (1, 4):
        phase = Phase(None, SHAPE.length, 4, chunks, objective="choice")
        encoder = encoder_config(config.model, SIZE)
        objective = ChoiceObjective.from_config(config, phase, encoder, Execution(), SYNTHETIC_FACTS)
        params = jax.tree.map(lambda leaf: 10 * leaf, jit(lambda objective=objective: objective.init(0))())
        prepared = objective.prepare(batch, None, {})
        assert float(prepared.weight) == 3
        found.append(objective.report(jit(objective.sums)(params, prepared.rows, None)))
    outputs = np.asarray(jit(objective.outputs)(params, batch))[layout.rows, layout.slots]
    metrics = Choice().measure({"outputs": list(outputs)}, examples, (), config.task)
    for report in found:
        assert float(report["loss"]) == pytest.approx(metrics["loss"], rel=1e-4)
        assert float(report["accuracy"]) == pytest.approx(metrics["accuracy"])
    assert metrics["loss"] > 0.1
