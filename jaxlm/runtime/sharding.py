"""The mesh of devices, and how batches, parameters and optimizer state are split over its axes."""

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

# The mesh axes of a parameter's dimensions, by its path. `fsdp` splits a parameter for storage, `tensor` splits the
# product that it takes part in; neither splits the residual stream. The first rule that matches decides.
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
BATCH_AXES = ("slice", "data", "fsdp")  # a mesh of one slice has no axis "slice"


def make_mesh(settings: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh that section `mesh` describes, over all devices of all processes unless `devices` is given.

    Its axes are `data`, `fsdp` and `tensor`, after `slice` if there are several slices. Raises UserError if their sizes
    do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = settings.slices or _slices_of(devices)
    inner = settings.fsdp * settings.tensor
    data = len(devices) // (slices * inner) if settings.data == -1 else settings.data
    if slices * data * inner != len(devices) or not data:
        available = f"{len(devices)} devices are" if len(devices) > 1 else "1 device is"
        outer = f"{'mesh.slices' if settings.slices else 'slices'}={slices}, " if slices > 1 else ""
        raise UserError(
            f"{outer}mesh.data={settings.data}, mesh.fsdp={settings.fsdp} and mesh.tensor={settings.tensor} must "
            f"multiply to the number of devices, but {available} available"
        )
    shape, axes = (data, settings.fsdp, settings.tensor), ("data", "fsdp", "tensor")
    if slices == 1:
        return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)
    groups = [mesh_utils.create_device_mesh(shape, group) for group in _by_slice(devices, slices)]
    return Mesh(np.stack(groups), ("slice", *axes), axis_types=(AxisType.Auto,) * 4)


def _slices_of(devices: Sequence[Any]) -> int:
    """Returns the number of TPU slices that the devices belong to; 1 for other devices, which need mesh.slices."""
    if getattr(devices[0], "platform", "") != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def _by_slice(devices: Sequence[Any], slices: int) -> list[list]:
    """Returns the devices of each slice.

    Devices other than TPUs may not report their slices: then neighbouring processes form one. Raises UserError if the
    devices do not form `slices` slices of equal size.
    """
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
        raise UserError(
            f"mesh.slices={slices} requires {slices} slices of equal size, but the devices form slices of {sizes}"
        )
    return [groups[number] for number in sorted(groups)]


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of equal parts into which the mesh splits a batch."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int, key: str = "train.batch_size") -> None:
    """Raises UserError unless each of the `accumulate` micro-batches can be split equally over the batch axes.

    `key` is the setting of the batch size, for the message.
    """
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulate):
        times = f" times {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(f"{key}={batch_size} is not divisible by the {parts} devices that split the batch{times}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's arrays [B, ...]: rows over `slice`, `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape)))


def local_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Returns the parts of a batch that this process's devices hold, in ascending order, and the total number."""
    parts = batch_parts(mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((parts,)).values()
    return tuple(sorted({index[0].start or 0 for index in held if index})), parts


def shard_batch(mesh: Mesh, rows: dict[str, np.ndarray]) -> dict[str, Array]:
    """Returns the global batch, arrays [B, ...] split over the mesh by `batch_sharding`.

    rows are arrays [B * held / parts, ...] of the same dtypes: the rows of the parts that this process holds, in the
    order of `local_parts`.
    """
    held, parts = local_parts(mesh)
    sharding, order = batch_sharding(mesh), {part: number for number, part in enumerate(held)}

    def shard(local: np.ndarray) -> Array:
        size = len(local) // len(held)  # of a part

        def part(index: Any) -> np.ndarray:
            first = order[(index[0].start or 0) // size] * size
            return local[first : first + size]

        return jax.make_array_from_callback((parts * size, *local.shape[1:]), sharding, part)

    return {name: shard(local) for name, local in rows.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """Returns the tree of NamedShardings that PARAM_RULES give to parameters, arrays or shapes.

    A dimension that is not divisible by the size of its mesh axis stays whole. Raises UserError if no rule covers a
    parameter.
    """
    specs = match_rules(PARAM_RULES, params, "PARAM_RULES in sharding.py", every_rule=False)
    return jax.tree.map(lambda leaf, spec: NamedSharding(mesh, _fit(mesh, leaf.shape, spec)), params, specs)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the tree of NamedShardings of {"params", "opt_state"}, arrays or shapes.

    The optimizer's arrays for a parameter are split as the parameter is; its counters are replicated.
    """
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
