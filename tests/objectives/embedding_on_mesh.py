"""Trains a small embedding model on all devices of this process, and prints its losses as JSON.

`test_embedding.py` runs it on one device, and on two with a batch in chunks.
"""

import json

import jax
import numpy as np

from jaxlm.config import default_config
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.model.config import encoder_config
from jaxlm.runtime import sharding
from jaxlm.step import assemble
from tests.objectives.test_embedding import NUMBERS, SHAPE, SIZE, make_batch


def losses(mesh, accumulate: int) -> list[float]:
    config = default_config()
    config.model.update(
        layers=1, width=16, heads=2, feed_forward_width=32, vocab_size=SIZE, dropout=0.1, attention_dropout=0.1
    )
    config.train.update(objective="embedding", batch_size=8, accumulate=accumulate, steps=3, compute_dtype="float32")
    config.data.sequence_length, config.task.negatives = SHAPE.length, ("hard",)
    config.optimizer.learning_rate = 0.01
    assembly = assemble(config, encoder_config(config.model), SYNTHETIC_FACTS, mesh, "cpu")
    step = jax.jit(assembly.train_step(0, 3), out_shardings=(assembly.state_shardings, None))
    state, found = assembly.fresh_state(), []
    batch = sharding.shard_batch(mesh, make_batch(NUMBERS, 8))
    for number in range(3):
        state, metrics = step(state, batch, np.int32(number), np.float32(number), {})
        found.append(float(metrics["loss"]))
    return found


if __name__ == "__main__":
    mesh = sharding.make_mesh(default_config().mesh)
    print(json.dumps({"devices": mesh.size, "losses": losses(mesh, accumulate=mesh.size)}))
