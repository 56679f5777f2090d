"""A profile of the training step: seconds per kind of kernel, from JAX's profiler and the compiled program.

Each kernel has one kind: that of the matrix product in it, or of most of its arithmetic if it fuses several operations.
XLA merges small operations across layers (dropout's hash with the activation before it), so the boundaries between the
cheap kinds are approximate.
"""

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm.performance.hlo import CALLERS, Instruction, Program, executions, fused_instructions, read_program

KINDS = {
    "products": "matrix products of the layers, forward and backward",
    "attention": "products of queries, keys and values, softmax, rotary embedding, masks",
    "logits": "the prediction head, the vocabulary projection and the loss, forward and backward",
    "normalisation": "layer norms",
    "activation": "element-wise operations between the feed-forward products",
    "biases": "adding biases, and their gradients",
    "dropout": "generating and applying dropout masks",
    "casts and layout": "casts, transposes and copies",
    "embeddings": "embedding look-ups and their gradients",
    "masking": "choosing the tokens to predict",
    "optimizer": "gradient clipping and the update",
    "collectives": "communication between devices",
    "the rest": "residual additions, and kernels without a name",
}
DENSE = {"query", "key", "value", "output", "up", "gate", "down", "projection"}
MOVES = {"convert", "copy", "transpose"}
FREE = {"parameter", "constant", "broadcast", "bitcast", "reshape", "tuple", "get-tuple-element", "iota"}
HEAVY = {"exponential", "log", "erf", "tanh", "power", "rsqrt", "sqrt", "cosine", "sine", "logistic"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SLOWEST = 30  # kernels that a profile lists one by one


class Kernel(NamedTuple):
    """The kind of a kernel, and the FLOPs of its matrix products (0 if it has none)."""

    kind: str
    flops: float


class Interval(NamedTuple):
    """One run of a kernel; times in nanoseconds."""

    name: str
    start: float
    end: float


class KindTime(NamedTuple):
    """Seconds per step of one kind of kernel, those of its kernels with matrix products, and the products' FLOPs."""

    seconds: float
    product_seconds: float
    flops: float


class Profile(NamedTuple):
    """Seconds per step: wall clock, by kind, and of the slowest kernels (name, kind, seconds, shape, op_name)."""

    step_seconds: float
    kinds: dict[str, KindTime]
    slowest: list[tuple[str, str, float, str, str]]

    @property
    def uncovered(self) -> float:
        """Returns the seconds per step in which no kernel ran: dispatch, and gaps between kernels."""
        return max(self.step_seconds - sum(time.seconds for time in self.kinds.values()), 0.0)


def profile_steps(compiled_text: str, run_steps: Callable[[], float], steps: int) -> Profile:
    """Returns the profile of `run_steps()`, which runs `steps` steps to completion and returns their wall seconds.

    `compiled_text` is `compiled.as_text()` of the step.
    """
    program = read_program(compiled_text)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing Python would slow the host
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            wall = run_steps()
        intervals = [one for path in Path(folder).rglob("*.xplane.pb") for one in read_intervals(path, program)]

    def is_container(name: str) -> bool:
        return name in program.instructions and program.instructions[name].opcode in CALLERS

    return summarise(program, share_time(intervals, is_container), steps, wall)


def classify(program: Program, name: str) -> Kernel:
    """Returns the kind and the FLOPs of the kernel that runs instruction `name`; an unknown one is "the rest"."""
    one = program.instructions.get(name)
    if one is None:
        return Kernel("the rest", 0.0)
    if one.opcode.startswith(COLLECTIVES):
        return Kernel("collectives", 0.0)
    body = fused_instructions(program, one)
    op_name = one.op_name or next((part.op_name for part in body if part.op_name), "") or _nearby_op_name(program, one)
    products = [(product_flops(part, program.instructions), part) for part in body]
    flops, largest = max(products, key=lambda entry: entry[0], default=(0.0, one))
    if flops:
        return Kernel(_kind_of(largest, op_name, True), sum(count for count, _ in products))
    work: dict[str, float] = defaultdict(float)
    for part in body:
        if part.opcode not in FREE:
            work[_kind_of(part, op_name, False)] += _elements(part, program.instructions)
    return Kernel(max(work, key=work.__getitem__) if work else _kind_of(one, op_name, False), 0.0)


def _nearby_op_name(program: Program, one: Instruction) -> str:
    """Returns the op_name of a user or an operand, up to four edges away: XLA drops some when it rewrites programs."""
    for neighbours in (lambda other: program.users.get(other.name, []), lambda other: other.operands):
        level = [one]
        for _ in range(4):
            names = [name for other in level for name in neighbours(other) if name in program.instructions]
            level = [program.instructions[name] for name in names if program.instructions[name].opcode != "parameter"]
            if found := next((other.op_name for other in level if other.op_name), ""):
                return found
    return ""


def product_flops(one: Instruction, instructions: dict[str, Instruction]) -> float:
    """Returns the FLOPs of a matrix product (twice its multiplications), or 0 for any other instruction.

    XLA writes products as convolutions for TPU and as calls of cuBLAS for GPU. A product with one row or column is a
    sum and counts 0.
    """
    if math.prod(one.dimensions) == max(one.dimensions, default=1):
        return 0.0
    left = instructions[one.operands[0]].dimensions if one.operands and one.operands[0] in instructions else ()
    if one.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    elif one.opcode == "custom-call" and "gemm" in one.attributes:
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)
    elif one.opcode == "convolution":
        labels = re.search(r"dim_labels=(\w+)_", one.attributes)
        axis = labels[1].find("f") if labels else -1
        axes = re.match(r"(\d+)", str(axis)) if axis >= 0 else None
    else:
        return 0.0
    contracted = [int(axis) for axis in re.findall(r"\d+", axes[1])] if axes else []
    if any(axis >= len(left) for axis in contracted):
        return 0.0
    return 2.0 * math.prod(one.dimensions) * math.prod(left[axis] for axis in contracted)


def _elements(one: Instruction, instructions: dict[str, Instruction]) -> float:
    """Returns the approximate arithmetic of an instruction, in elements; transcendental functions count ten times."""
    sizes = [math.prod(one.dimensions)]
    if one.opcode.startswith(("reduce", "sort", "scatter")):
        sizes += [math.prod(instructions[name].dimensions) for name in one.operands if name in instructions]
    return max(sizes) * (10.0 if one.opcode in HEAVY else 1.0)


def _kind_of(one: Instruction, fallback: str, product: bool) -> str:
    """Returns the kind of an instruction by the scopes in its op_name, or in `fallback` if it has none."""
    scopes = re.findall(r"[\w.>,\-]+", one.op_name or fallback)
    known = set(scopes)
    for kind in ("optimizer", "masking", "dropout"):
        if kind in known:
            return kind
    if one.opcode in MOVES:
        return "casts and layout"
    if "encoder" in known or "head" in known or "loss" in known:
        if any(scope == "norm" or scope.endswith("_norm") for scope in scopes):
            return "normalisation"
        if "encoder" not in known:
            return "logits"
        if "attention" in known:
            dense = DENSE & set(scopes[scopes.index("attention") + 1 :])
            batched = re.search(r"lhs_batch_dims=\{\d|\"lhs_batch_dimensions\":\[\"", one.attributes)
            return "products" if product and (dense or not batched) else "biases" if dense else "attention"
        if "feed_forward" in known:
            dense = DENSE & set(scopes[scopes.index("feed_forward") + 1 :])
            return "products" if product else "biases" if dense else "activation"
        if "embeddings" in known:
            return "products" if product else "embeddings"
        if not any(scope.startswith("layers_") for scope in scopes):
            return "attention"  # masks and rotary tables, which layers share
    return "the rest"


def read_intervals(path: Path, program: Program) -> list[Interval]:
    """Returns each run of a kernel of `program` on the first device, from a profile (an .xplane.pb file)."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = sorted(plane.name for plane in planes if re.match(r"/device:(GPU|TPU):\d+", plane.name))
    plane = next(plane for plane in planes if plane.name == (devices[0] if devices else "/host:CPU"))
    lines = list(plane.lines)
    if devices:
        # A GPU's kernels are in its streams; a line of operations, if present, repeats them.
        lines = [line for line in lines if line.name == "XLA Ops"] or [
            line for line in lines if line.name.startswith("Stream")
        ]
    gpu_names = {re.sub(r"[.\-]", "_", name): name for name in program.instructions}
    intervals, finished = list[tuple[Any, Interval]](), dict[Any, float]()
    for line in lines:
        for event in line.events:
            stats = dict(event.stats)
            end = event.start_ns + event.duration_ns
            if event.name.startswith("end: "):
                finished[stats.get("_c")] = max(end, finished.get(stats.get("_c"), 0.0))
            if not devices and "hlo_op" not in stats:
                continue
            if stats.get("hlo_module", program.module) != program.module or stats.get("device_ordinal", 0) != 0:
                continue
            name = str(stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%"))
            name = name if name in program.instructions else gpu_names.get(event.name, name)
            intervals.append((stats.get("_p"), Interval(name, event.start_ns, end)))
    # A CPU kernel can outlive its own event and finish in other threads: an "end: " event then marks its end.
    return [one._replace(end=max(one.end, finished.get(number, 0.0))) for number, one in intervals]


def share_time(intervals: Iterable[Interval], is_container: Callable[[str], bool]) -> dict[str, float]:
    """Returns the nanoseconds of each kernel; every moment is counted once.

    Kernels that run at the same time share it equally. A container (a loop or a call) gets only the time in which none
    of the kernels inside it runs.
    """
    edges = sorted(
        (moment, begins, number, one.name)
        for number, one in enumerate(sorted(intervals, key=lambda one: one.start))
        if one.end > one.start
        for moment, begins in ((one.start, True), (one.end, False))
    )
    shares: dict[str, float] = defaultdict(float)
    running: dict[int, str] = {}
    containers: dict[int, str] = {}
    before = 0.0
    for moment, begins, number, name in edges:
        if running:
            for other in running.values():
                shares[other] += (moment - before) / len(running)
        elif containers:  # the innermost began last
            shares[containers[max(containers)]] += moment - before
        before = moment
        active = containers if is_container(name) else running
        if begins:
            active[number] = name
        else:
            active.pop(number, None)
    return dict(shares)


def summarise(program: Program, nanoseconds: dict[str, float], steps: int, wall_seconds: float) -> Profile:
    """Returns the profile of `steps` steps that took `wall_seconds`, given the nanoseconds of each kernel."""
    runs = executions(program)
    runs_of = {one.name: runs[name] for name, body in program.computations.items() for one in body}
    times = {kind: [0.0, 0.0, 0.0] for kind in KINDS}
    slowest = []
    for name, duration in nanoseconds.items():
        kernel, seconds = classify(program, name), duration / 1e9 / steps
        entry = times[kernel.kind]
        entry[0] += seconds
        if kernel.flops:
            entry[1] += seconds
            entry[2] += kernel.flops * (runs_of.get(name) or 1)
        one = program.instructions.get(name)
        slowest.append((name, kernel.kind, seconds, one.shape if one else "", one.op_name if one else ""))
    slowest.sort(key=lambda entry: -entry[2])
    kinds = {kind: KindTime(*entry) for kind, entry in times.items() if entry[0]}
    return Profile(wall_seconds / steps, kinds, slowest[:SLOWEST])
