"""The collectives of a compiled step: how often each runs and how many bytes each device sends."""

import math
import re
from typing import NamedTuple

import numpy as np

from jaxlm.performance.hlo import executions, read_program

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
    """All collectives of one kind over the same mesh axes in one step."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which the devices of a group lie
    devices: int  # in a group
    times: int  # per step
    bytes: int  # per step: of a device's whole array, after a gather or before a scatter
    sent_bytes: int  # per step, by one device, in a ring


def read_collectives(hlo: str, mesh_shape: dict[str, int]) -> list[Collective]:
    """Returns the collectives of a compiled program (`compiled.as_text()`) by bytes sent, largest first.

    `mesh_shape` maps the names of the mesh's axes to their sizes. Collectives in a loop count once per iteration. On
    TPU the compiler may spread one collective over many fused computations: those with the same channel count once.
    """
    program = read_program(hlo)
    times = executions(program)
    found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for name, computation in program.computations.items():
        for one in computation:
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            group = _group(one.attributes, mesh_shape)
            size = _array_bytes(kind, one.opcode != kind, one.result_bytes, len(group))
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            key = channel[1] if channel else f"{name}:{one.name}"
            if key not in found or found[key][2] < times[name]:
                found[key] = (kind, group, times[name], size)
    totals: dict[tuple, list[int]] = {}
    for kind, group, count, size in found.values():
        if len(group) > 1:
            total = totals.setdefault((kind, _axes(group, mesh_shape), len(group)), [0, 0, 0])
            for index, more in enumerate((count, count * size, count * sent(kind, size, len(group)))):
                total[index] += more
    return sorted((Collective(*key, *total) for key, total in totals.items()), key=lambda c: -c.sent_bytes)


def sent(kind: str, size: int, devices: int) -> int:
    """Returns the bytes that one device sends for an array of `size` bytes in a ring of `devices`."""
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) // devices


def _array_bytes(kind: str, start: bool, size: int, devices: int) -> int:
    """Returns the bytes of the whole array, given those of the result; a start's result includes the operand."""
    if start and kind == "all-gather":
        return size * devices // (devices + 1)
    if start and kind == "collective-permute":
        return size // 2
    return size * devices if kind == "reduce-scatter" else size


def _group(text: str, mesh_shape: dict[str, int]) -> tuple[int, ...]:
    """Returns the first group's devices as flat indices into the mesh, from any of XLA's notations for groups."""
    all_devices = tuple(range(math.prod(mesh_shape.values())))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]\S*?)\))?\s*\{([^}]*)\}", text):
        return _named_group(*named.groups())
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\[\S*)", text):
        return tuple(_ids(tiled[2]).reshape(_numbers(tiled[1]))[0].tolist())
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(int(n) for n in listed[1].split(","))
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", text):
        links: dict[int, int] = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])}
        start = next((a for a, b in links.items() if a != b), None)
        if start is None:
            return (0,)
        ring = [start]
        while (following := links.get(ring[-1])) is not None and following not in ring:
            ring.append(following)
        return tuple(sorted(ring))
    return all_devices


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _ids(text: str) -> np.ndarray:
    """Returns the device order of `[4,2]T(1,0)`: `arange` in that shape, transposed and flattened."""
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?.*", text).groups()  # type: ignore[union-attr]
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)).reshape(-1) if order else ids.reshape(-1)


def _named_group(mesh: str, order: str | None, axes: str) -> tuple[int, ...]:
    """Returns the first group of `mesh['a'=8,'b'=4] {'a','b':(2)2}`, which lies along whole axes or parts of them."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    chosen = {name: (part, size) for name, part, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    index: list[int | slice] = []
    dimensions: list[int] = []
    for name, whole in sizes.items():
        if name not in chosen:
            dimensions, index = [*dimensions, whole], [*index, 0]
        elif not chosen[name][0]:
            dimensions, index = [*dimensions, whole], [*index, slice(None)]
        else:
            before, size = (int(n) for n in chosen[name])
            dimensions, index = [*dimensions, before, size, whole // (before * size)], [*index, 0, slice(None), 0]
    ids = _ids(order) if order else np.arange(math.prod(dimensions))
    return tuple(ids.reshape(dimensions)[tuple(index)].reshape(-1).tolist())


def _axes(group: tuple[int, ...], mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """Returns the axes of the mesh along which the devices of a group differ."""
    indices = np.unravel_index(np.array(group), tuple(mesh_shape.values()))
    return tuple(name for name, index in zip(mesh_shape, indices, strict=True) if len(set(index.tolist())) > 1)
