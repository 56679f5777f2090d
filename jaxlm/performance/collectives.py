"""What devices send each other in a compiled step, read from the text of its HLO program."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "s4": 4, "u4": 4}  # of the types whose name does not end in them

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALL = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """All collectives of a kind over the same axes in one step."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which the devices of a group lie
    devices: int  # in a group
    times: int  # in one step
    bytes: int  # of a device's whole array, after a gather or before a scatter
    sent_bytes: int  # by a device, in a ring


def read_collectives(hlo: str, mesh_shape: dict[str, int]) -> list[Collective]:
    """Returns the collectives of a compiled program, `compiled.as_text()`, on a mesh of named axes, largest first.

    What stands in a loop counts as often as the loop runs. On TPUs one collective may be spread over many fused
    computations: those with the same channel are one.
    """
    computations = _split(hlo)
    times = _executions(computations)
    found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for name, lines in computations.items():
        for number, line in enumerate(lines):
            operation = _OPERATION.match(line)
            if not operation or not times[name]:
                continue
            shapes, kind, start = operation.groups()
            group = _group(line, mesh_shape)
            size = _payload(kind, bool(start), _bytes(shapes), len(group))
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[1] if channel else f"{name}:{number}"
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
    """Returns the bytes that a device sends for an array of `size` bytes, passed round a ring of `devices`."""
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) // devices


def _split(hlo: str) -> dict[str, list[str]]:
    """Returns the lines of each computation by its name, in the program's order: what is called stands before."""
    computations: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault("ENTRY" if header[1] else header[2], [])
        elif computations and line.startswith(" "):
            lines.append(line)
    return computations


def _executions(computations: dict[str, list[str]]) -> dict[str, int]:
    """Returns how often each computation runs in one call of the program."""
    times = dict.fromkeys(computations, 0)
    times["ENTRY"] = 1
    for name in reversed(computations):
        for line in computations[name]:
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                times[loop[2]] += times[name] * _trips(line, computations[loop[1]])
            elif branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                for branch in branches[1].split(","):
                    times[branch.strip().lstrip("%")] += times[name]
            else:
                for callee in _CALL.findall(line):
                    if callee in times:
                        times[callee] += times[name]
    return times


def _trips(line: str, condition: Sequence[str]) -> int:
    """Returns how often a loop runs: XLA's own word, or the constant that its counter is compared with; else 1."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line):
        return int(known[1])
    limits = [int(n) for text in condition for n in re.findall(r"[su](?:32|64)\[\]\S* constant\((\d+)\)", text)]
    return max(limits, default=1)


def _bytes(shapes: str) -> int:
    total = 0
    for kind, dimensions in _SHAPE.findall(shapes):
        if kind != "token":
            width = re.match(r"[a-z]+(\d+)", kind)
            bits = BITS.get(kind) or (int(width[1]) if width else 8)
            total += math.prod(int(d) for d in dimensions.split(",") if d) * bits // 8
    return total


def _payload(kind: str, start: bool, size: int, devices: int) -> int:
    """Returns the bytes of the whole array from those of the result; a start's result has the operand in it too."""
    if start and kind == "all-gather":
        return size * devices // (devices + 1)
    if start and kind == "collective-permute":
        return size // 2
    return size * devices if kind == "reduce-scatter" else size


def _group(line: str, mesh_shape: dict[str, int]) -> tuple[int, ...]:
    """Returns the devices of the first group, as their places in the mesh; XLA has several ways of writing them."""
    everyone = tuple(range(math.prod(mesh_shape.values())))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]\S*?)\))?\s*\{([^}]*)\}", line):
        return _named_group(*named.groups())
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\[\S*)", line):
        return tuple(_ids(tiled[2]).reshape(_numbers(tiled[1]))[0].tolist())
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return tuple(int(n) for n in listed[1].split(","))
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", line):
        links: dict[int, int] = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])}
        start = next((a for a, b in links.items() if a != b), None)
        if start is None:
            return (0,)
        ring = [start]
        while (following := links.get(ring[-1])) is not None and following not in ring:
            ring.append(following)
        return tuple(sorted(ring))
    return everyone


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _ids(text: str) -> np.ndarray:
    """Returns the devices in the order that `[4,2]T(1,0)` says: counted off in this shape, then transposed."""
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?.*", text).groups()  # type: ignore[union-attr]
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)).reshape(-1) if order else ids.reshape(-1)


def _named_group(mesh: str, order: str | None, axes: str) -> tuple[int, ...]:
    """Returns the first group of `mesh['a'=8,'b'=4] {'a','b':(2)2}`: along whole axes, or parts of one."""
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
    places = np.unravel_index(np.array(group), tuple(mesh_shape.values()))
    return tuple(name for name, place in zip(mesh_shape, places, strict=True) if len(set(place.tolist())) > 1)
