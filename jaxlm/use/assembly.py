"""The assembly of a trained model on this machine's devices, whatever mesh trained it."""

from typing import Any

import jax

from jaxlm.data.facts import DataFacts
from jaxlm.runtime import sharding
from jaxlm.step import Assembly, assemble
from jaxlm.use.loading import Trained


def assemble_trained(
    trained: Trained, config: Any, facts: DataFacts, objective: str, compute_dtype: str
) -> Assembly:  # fmt: skip
    """Returns the assembly of a model with one phase and an objective; `config`, a copy of the model's, is changed."""
    config.train.update(
        objective=objective, phases=(), attention="auto", rematerialise="none", compute_dtype=compute_dtype
    )
    config.model.rotary_base = trained.encoder.rotary_base
    config.optimizer.update(freeze=(), rate_multipliers=())
    config.pruning.sparsity = 0.0
    config.mesh.update(slices=0, data=-1, fsdp=1, tensor=1)
    mesh = sharding.make_mesh(config.mesh)
    return assemble(config, trained.encoder, facts, mesh, jax.devices()[0].platform)
