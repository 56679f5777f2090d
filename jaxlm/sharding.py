"""The mesh of devices, and which array is split along which of its axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import UserError
from jaxlm.optimizer import map_params, match_rules, param_path

# A parameter's axes by its path. `fsdp` splits a parameter for storage, `tensor` splits its product; the residual
# stream stays whole under both. The first rule that matches counts.
PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"embeddings/token/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"embeddings/(position|token_type)/embedding$", PartitionSpec(None, "fsdp")),
    (r"(query|key|value|up|gate)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(query|key|value|up|gate)/bias$", PartitionSpec("tensor")),
    (r"(output|down)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"head/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"head/bias$", PartitionSpec("tensor")),
    (r"(transform|projection)/kernel$", PartitionSpec("fsdp", None)),
    (r"(bias|scale)$", PartitionSpec()),
)
BATCH_AXES = ("data", "fsdp")


def make_mesh(settings: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of section `mesh` over these devices, by default all devices of all processes.

    Raises UserError if they do not divide.
    """
    devices = jax.devices() if devices is None else devices
    inner = settings.fsdp * settings.tensor
    data = len(devices) // inner if settings.data == -1 else settings.data
    if data * inner != len(devices) or not data:
        here = f"the {len(devices)} devices that are here" if len(devices) > 1 else "the one device that is here"
        raise UserError(
            f"mesh.data={settings.data}, mesh.fsdp={settings.fsdp} and mesh.tensor={settings.tensor} do not multiply "
            f"to {here}"
        )
    shape = (data, settings.fsdp, settings.tensor)
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_parts(mesh: Mesh) -> int:
    """Returns into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, key: str = "train.batch_size") -> None:
    """Raises UserError unless each micro-batch is divided by the devices that split the batch."""
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulate):
        times = f" times {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(f"{key}={batch_size} is not divided by the {parts} devices that split the batch{times}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns how arrays [B, ...] of a batch are split: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """Returns a NamedSharding for each parameter (or shape) by PARAM_RULES, which must cover all of them.

    A dimension that an axis of the mesh does not divide stays whole.
    """
    specs = match_rules(PARAM_RULES, params, "PARAM_RULES in sharding.py", every_rule=False)
    return jax.tree.map(lambda leaf, spec: NamedSharding(mesh, _fit(mesh, leaf.shape, spec)), params, specs)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns a NamedSharding for each array of {"params", "opt_state"}: the optimizer's follow their parameter."""
    by_path = {param_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"])}
    shardings = {
        param_path(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings(mesh, state["params"]))
    }

    def follow(path: str, leaf: Any) -> NamedSharding:
        for name, param in by_path.items():
            if path.endswith("/" + name) and leaf.shape == param.shape:
                return shardings[name]
        return replicated(mesh)

    return map_params(follow, state)


def _fit(mesh: Mesh, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    axes = [axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, spec, strict=False)]
    return PartitionSpec(*axes)
