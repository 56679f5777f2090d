"""Fine-tunes a small classifier with several regularizers on all devices, and saves what training leaves behind.

`test_regularized_on_mesh.py` runs it on one and on four devices:
python tests/objectives/regularized_on_mesh.py '{"fsdp": 2, "tensor": 2}' out.npz
"""

import json
import sys

import jax
import numpy as np

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import ExampleRows
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.model.config import encoder_config
from jaxlm.objectives.distillation import OUTPUTS, STATES
from jaxlm.runtime import sharding
from jaxlm.runtime.parameter_paths import param_path
from jaxlm.step import assemble

SIZE, LENGTH, WIDTH, STEPS, EXAMPLES = 64, 32, 32, 6, 24
LABELS = ("a", "b", "c")
VARIANTS = {
    "magnitude pruning, R-Drop, averaging and a teacher": {
        "pruning.method": "magnitude", "task.r_drop": 1.0, "optimizer.average": 0.9, "task.teacher": "TEACHER",
        "task.teacher_states": 0.5,
    },
    "movement pruning and averaging": {"pruning.method": "movement", "optimizer.average": 0.9},
}  # fmt: skip


def make_examples(taught: bool) -> Examples:
    random = np.random.default_rng(0)
    tokens = [random.integers(5, SIZE, random.integers(6, 14)).astype(np.int32) for _ in range(EXAMPLES)]
    columns = {
        "labels": random.integers(0, len(LABELS), EXAMPLES).astype(np.int32),
        "weights": np.ones(EXAMPLES, np.float32),
    }
    if taught:
        columns[OUTPUTS] = random.normal(size=(EXAMPLES, len(LABELS))).astype(np.float32)
        columns[STATES] = random.normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
    return Examples([None] * EXAMPLES, tokens, [np.zeros_like(one) for one in tokens], columns)


def train(mesh, settings: dict) -> dict[str, np.ndarray]:
    """Returns the leaves of the state after the last step, by their paths."""
    config = default_config()
    config.model.update(
        layers=1, width=WIDTH, heads=2, feed_forward_width=64, vocab_size=SIZE, dropout=0.1, attention_dropout=0.1
    )
    config.train.update(objective="classification", batch_size=8, steps=STEPS, compute_dtype="float32")
    config.data.sequence_length, config.optimizer.learning_rate = LENGTH, 0.01
    config.pruning.update(sparsity=0.5, end=0.5, every=1)
    for name, value in settings.items():
        section, _, key = name.partition(".")
        config[section][key] = value
    facts = SYNTHETIC_FACTS._replace(labels=LABELS)
    assembly = assemble(config, encoder_config(config.model), facts, mesh, "cpu")
    rows = ExampleRows(make_examples(bool(config.task.teacher)), [Phase(None, LENGTH, 8)], 0, 0, 4)
    step = jax.jit(assembly.train_step(0, STEPS), out_shardings=(assembly.state_shardings, None))
    state = assembly.fresh_state()
    for number in range(STEPS):
        state, _ = step(state, sharding.shard_batch(mesh, rows.batch(number)), np.int32(number), np.float32(number), {})
    return {param_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


if __name__ == "__main__":
    axes = default_config().mesh
    axes.update(json.loads(sys.argv[1]))
    mesh = sharding.make_mesh(axes)
    found = {f"{name}: {path}": leaf for name, of in VARIANTS.items() for path, leaf in train(mesh, of).items()}
    np.savez(sys.argv[2], devices=np.array(mesh.size), **found)
