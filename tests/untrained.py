"""A work directory with a small untrained model, for tests of the verbs that use a model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import default_config, save_config
from jaxlm.model import heads
from jaxlm.model.config import encoder_config
from jaxlm.objectives import table as objectives
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.tokenizer.tokenizer import train_tokenizer
from tests.conftest import sentences

TINY = {
    "layers": 2, "width": 16, "heads": 2, "feed_forward_width": 20, "dropout": 0.0, "attention_dropout": 0.0,
    "positions": "learned", "max_positions": 40,
}  # fmt: skip
LENGTH = 40


def make_workdir(path: Path, **model) -> Path:
    """Writes a work directory and returns it; the model reads LENGTH tokens and has a vocabulary of 80 pieces."""
    config = default_config()
    config.model.update(TINY | model)
    return _write(path, config)


def make_fine_tuned(
    path: Path, objective: str = "classification", labels=("calm", "busy"), model: Mapping[str, Any] = {}, **task
) -> Path:
    """Writes the work directory of a model with the head of a task, with random weights, and returns it."""
    config = default_config()
    config.model.update(TINY | {"layers": 1} | dict(model))
    config.train.update(objective=objective, compute_dtype="float32", batch_size=8)
    config.task.update({"train": "train.tsv", "labels": labels} | task)
    return _write(path, config)


def _write(path: Path, config: Any) -> Path:
    config.data.update(sequence_length=LENGTH, path=("text.txt",))
    config.tokenizer.update(vocab_size=80, character_coverage=1.0)
    path.mkdir(parents=True)
    tokenizer = train_tokenizer(sentences(300), config.tokenizer, path / "tokenizer")
    encoder = encoder_config(config.model, tokenizer.vocab_size)
    save_config(config, path / "config.json")
    np.save(path / "token_counts.npy", np.ones(tokenizer.vocab_size, np.int64))
    checkpoints = Checkpoints(path / "checkpoints")
    checkpoints.save(1, {"params": random_values(objectives.abstract_params(config, encoder))}, {}, wait=True)
    return path


def random_params(encoder, seed: int = 0) -> dict:
    """Returns random weights with which every parameter affects the output: no bias is zero and no scale is one."""
    return random_values(heads.abstract_params(encoder), seed)


def random_values(abstract: Any, seed: int = 0) -> Any:
    """Returns random weights of these shapes, likewise."""
    random = np.random.default_rng(seed)

    def leaf(path, shape):
        noise = random.standard_normal(shape.shape).astype(np.float32)
        if path[-1].key == "kernel":
            noise /= math.sqrt(shape.shape[0])
        return 1 + 0.3 * noise if path[-1].key == "scale" else noise

    return jax.tree_util.tree_map_with_path(leaf, abstract)
