"""Trains a small model with dropout on all devices of this process, and prints digests of each step's data as JSON.

`test_devices.py` runs it on one, two and four devices: python tests/train_on_mesh.py '{"fsdp": 2, "tensor": 2}'
`test_hosts.py` runs it as four processes, each with its own process_id, for one variant:
python tests/train_on_mesh.py '{"coordinator": "127.0.0.1:8476", "processes": 4, "process_id": 0}' float32
"""

import dataclasses
import hashlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.config import default_config
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.data.rows import runs_of_parts
from jaxlm.model import attention, encoder
from jaxlm.model.config import encoder_config
from jaxlm.model.layers import dropout
from jaxlm.objectives import masked_lm
from jaxlm.objectives.table import make_objective
from jaxlm.runtime import distributed, sharding
from jaxlm.step import assemble

STEPS, BATCH, LENGTH, VOCABULARY, SPECIAL = 20, 8, 32, 64, SYNTHETIC_FACTS.special_ids


def make_config(accumulate: int, name: str):
    config = default_config()
    config.model.update(
        vocab_size=VOCABULARY, layers=2, width=32, heads=2, feed_forward_width=64, activation="geglu",
        positions="rotary", layer_pattern="gl", window=8, dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    config.masking.scheme = "whole_word"
    config.data.sequence_length, config.train.batch_size, config.train.accumulate = LENGTH, BATCH, accumulate
    config.train.steps, config.optimizer.name, config.optimizer.learning_rate = STEPS, name, 0.01
    return config


def synthetic_rows(step: int) -> dict[str, np.ndarray]:
    """Returns packed rows of several documents; padding, and so the number of predictions, varies by row."""
    random = np.random.default_rng(step)
    tokens = random.integers(len(SPECIAL), VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    tokens[:, 1::2] = (tokens[:, ::2] + 7) % (VOCABULARY - 5) + 5  # something to learn
    segment_ids = 1 + np.cumsum(random.random((BATCH, LENGTH)) < 0.1, axis=1).astype(np.int32)
    segment_ids[np.arange(LENGTH) >= random.integers(4, 2 * LENGTH, (BATCH, 1))] = 0
    return {"tokens": tokens, "segment_ids": segment_ids, "word_starts": random.random((BATCH, LENGTH)) < 0.7}


def digest(tree) -> str:
    result = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        local = leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        result.update(np.asarray(local).tobytes())
    return result.hexdigest()[:16]


class Recorder:
    """Replaces the train step's `mask_tokens` and `dropout`, and records what they return while the step is traced."""

    def __init__(self) -> None:
        self.masked, self.kept = None, []
        self.mask_tokens, masked_lm.mask_tokens = masked_lm.mask_tokens, self.mask
        encoder.dropout = attention.dropout = self.drop

    def mask(self, *args):
        self.masked = self.mask_tokens(*args)
        return self.masked

    def drop(self, x, rate, seeds, site):
        self.kept.append(dropout(jnp.ones(x.shape), rate, seeds, site) > 0)
        return dropout(x, rate, seeds, site)


def make_run(mesh, dtype: str, accumulate: int, name: str):
    """Returns (initial state, its shardings, execution -> train step, the execution chosen for the mesh)."""
    config = make_config(accumulate, name)
    config.train.compute_dtype = dtype
    architecture = encoder_config(config.model)
    sharding.check_batch(mesh, BATCH, accumulate)
    assembly = assemble(config, architecture, SYNTHETIC_FACTS, mesh, "cpu")

    def step_of(execution):
        objective = make_objective(config, assembly.phases[0], architecture, execution, SYNTHETIC_FACTS)
        return dataclasses.replace(assembly, execution=execution, objectives=(objective,)).train_step(0, STEPS)

    return assembly.fresh_state(), assembly.state_shardings, step_of, assembly.execution


def step_inputs(mesh, step: int) -> tuple:
    runs = runs_of_parts(*sharding.local_parts(mesh), BATCH)
    mine = {name: np.concatenate([array[slice(*run)] for run in runs]) for name, array in synthetic_rows(step).items()}
    return sharding.shard_batch(mesh, mine), np.int32(step), np.float32(step), {"mask_rate": np.float32(0.15)}


def losses_and_digests(mesh, recorder: Recorder, dtype: str, accumulate: int, name: str) -> dict:
    state, shardings, step_of, execution = make_run(mesh, dtype, accumulate, name)
    step = step_of(execution)

    def recorded_step(state, batch, number, done, knobs):
        recorder.kept.clear()
        state, metrics = step(state, batch, number, done, knobs)
        # Accumulated steps draw dropout inside a loop, where it cannot be recorded: only the losses are compared.
        seen = {"rows": batch, "masks": recorder.masked, "dropout": list(recorder.kept) if accumulate == 1 else []}
        return state, metrics["loss"], seen

    jitted = jax.jit(recorded_step, out_shardings=(shardings, None, None))
    result: dict = {"losses": [], "rows": [], "masks": [], "dropout": []}
    for number in range(STEPS):
        state, loss, seen = jitted(state, *step_inputs(mesh, number))
        result["losses"].append(float(loss))
        for what, arrays in seen.items():
            result[what].append(digest(arrays))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    return result | {"share_of_state": held / sum(leaf.nbytes for leaf in jax.tree.leaves(state))}


def all_gathers(mesh, transpose_gradients: bool) -> int:
    state, shardings, step_of, execution = make_run(mesh, "bfloat16", 1, "adamw")
    step = step_of(dataclasses.replace(execution, transpose_gradients=transpose_gradients))
    text = jax.jit(step, out_shardings=(shardings, None)).lower(state, *step_inputs(mesh, 0)).compile().as_text()
    return len(re.findall(r" all-gather(?:-start)?\(", text))


def main() -> None:
    settings = default_config().mesh
    settings.update(json.loads(sys.argv[1]))
    with distributed.joined(settings):
        on_mesh(sharding.make_mesh(settings), sys.argv[2:])


def on_mesh(mesh, chosen: list[str]) -> None:
    count = not chosen and dict(mesh.shape)["data"] == 2
    gathers = {str(on): all_gathers(mesh, on) for on in (False, True)} if count else {}
    recorder = Recorder()
    variants = {
        "float32": ("float32", 1, "adamw"),
        "accumulated": ("float32", 2, "adamw"),
        "muon": ("float32", 1, "muon"),
        "bfloat16": ("bfloat16", 1, "adamw"),
    }
    names = chosen or list(variants)
    runs = {name: losses_and_digests(mesh, recorder, *variants[name]) for name in names}
    print(json.dumps({"devices": mesh.size, "mesh": dict(mesh.shape), "all_gathers": gathers, "runs": runs}))


if __name__ == "__main__":
    main()
