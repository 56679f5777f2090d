"""The mesh of devices, and which array is split along which of its axes."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import UserError
from jaxlm.runtime.parameter_paths import map_params, match_rules, param_path

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
BATCH_AXES = ("slice", "data", "fsdp")  # the first where there are several slices


def make_mesh(settings: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of section `mesh` over these devices, by default all devices of all processes.

    Raises UserError if they do not divide.
    """
    devices = jax.devices() if devices is None else devices
    slices = settings.slices or _slices_of(devices)
    inner = settings.fsdp * settings.tensor
    data = len(devices) // (slices * inner) if settings.data == -1 else settings.data
    if slices * data * inner != len(devices) or not data:
        here = f"the {len(devices)} devices that are here" if len(devices) > 1 else "the one device that is here"
        outer = f"{'mesh.slices' if settings.slices else 'slices'}={slices}, " if slices > 1 else ""
        raise UserError(
            f"{outer}mesh.data={settings.data}, mesh.fsdp={settings.fsdp} and mesh.tensor={settings.tensor} do not "
            f"multiply to {here}"
        )
    shape, axes = (data, settings.fsdp, settings.tensor), ("data", "fsdp", "tensor")
    if slices == 1:
        return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)
    groups = [mesh_utils.create_device_mesh(shape, group) for group in _by_slice(devices, slices)]
    return Mesh(np.stack(groups), ("slice", *axes), axis_types=(AxisType.Auto,) * 4)


def _slices_of(devices: Sequence[Any]) -> int:
    """Returns how many TPU slices the devices are of; what else has slices needs mesh.slices."""
    if getattr(devices[0], "platform", "") != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def _by_slice(devices: Sequence[Any], slices: int) -> list[list]:
    """Returns the devices of each slice; where they do not tell, neighbouring processes make one. Raises UserError."""
    groups: dict[int, list[Any]] = defaultdict(list)
    for device in devices:
        groups[getattr(device, "slice_index", 0)].append(device)
    if len(groups) != slices and getattr(devices[0], "platform", "") != "tpu":
        in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
        groups = {
            number: in_order[number * len(devices) // slices :][: len(devices) // slices] for number in range(slices)
        }
    if len(groups) != slices or len({len(group) for group in groups.values()}) > 1:
        sizes = ", ".join(str(len(groups[number])) for number in sorted(groups))
        raise UserError(f"mesh.slices={slices} is not how the devices lie: their slices have {sizes}")
    return [groups[number] for number in sorted(groups)]


def batch_parts(mesh: Mesh) -> int:
    """Returns into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, key: str = "train.batch_size") -> None:
    """Raises UserError unless each micro-batch is divided by the devices that split the batch."""
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulate):
        times = f" times {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(f"{key}={batch_size} is not divided by the {parts} devices that split the batch{times}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns how arrays [B, ...] of a batch are split: rows over `slice`, `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape)))


def local_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Returns which of the equal parts of a batch this process's devices hold, in order, and how many there are."""
    parts = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    held = batch_sharding(mesh).addressable_devices_indices_map((parts,)).values()
    return tuple(sorted({index[0].start or 0 for index in held if index})), parts


def shard_batch(mesh: Mesh, rows: dict[str, np.ndarray]) -> dict[str, Array]:
    """Returns the global batch, arrays [B, ...] on the mesh, of which this process gives the rows of its parts."""
    held, parts = local_parts(mesh)
    place, offset = batch_sharding(mesh), {part: number for number, part in enumerate(held)}

    def array(local: np.ndarray) -> Array:
        size = len(local) // len(held)  # of a part
        part = lambda index: local[(first := offset[(index[0].start or 0) // size] * size) : first + size]  # noqa: E731
        return jax.make_array_from_callback((parts * size, *local.shape[1:]), place, part)

    return {name: array(local) for name, local in rows.items()}


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
