"""Where a step's time goes: JAX's own profile of every kernel, joined with what the compiled program says of it.

Each kernel has one kind, that of the product in it, or of most of its arithmetic where it fuses several things: the
compiler merges dropout's hash with the activation before it, so the borders between the cheap kinds are not sharp.
"""

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

KINDS = {
    "products": "matrix products of the layers, forward and backward",
    "attention": "products of queries, keys and values, softmax, rotary angles, masks",
    "logits": "the head, the vocabulary's product and the loss, forward and backward",
    "normalisation": "layer norms",
    "activation": "what stands between the feed-forward's products",
    "biases": "adding them, and their gradients",
    "dropout": "its bits and their use",
    "casts and layout": "casts, transposes and copies",
    "embeddings": "look-ups and their gradients",
    "masking": "choice of the tokens to predict",
    "optimizer": "clipping and the update",
    "collectives": "what devices send each other",
    "the rest": "residual sums and what has no name",
}
DENSE = {"query", "key", "value", "output", "up", "gate", "down", "projection"}
MOVES = {"convert", "copy", "transpose"}
FREE = {"parameter", "constant", "broadcast", "bitcast", "reshape", "tuple", "get-tuple-element", "iota"}
HEAVY = {"exponential", "log", "erf", "tanh", "power", "rsqrt", "sqrt", "cosine", "sine", "logistic"}
CONTAINERS = {"while", "call", "conditional"}  # kernels of their own bodies run within them
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    opcode: str
    dimensions: tuple[int, ...]  # of the result; of a tuple's first part
    shape: str  # as the program writes it, without layout
    operands: tuple[str, ...]
    scope: str  # op_name: the functions and modules that it comes from
    attributes: str


class Program(NamedTuple):
    """A compiled program: the instructions of each of its computations, each by its name, and who uses its result."""

    module: str
    computations: dict[str, list[Instruction]]
    instructions: dict[str, Instruction]
    users: dict[str, list[str]]


class Kernel(NamedTuple):
    """What one kernel is for, and the FLOPs of the matrix products in it (0 where there are none)."""

    kind: str
    flops: float


class Interval(NamedTuple):
    """One run of a kernel, in nanoseconds."""

    name: str
    start: float
    end: float


class KindTime(NamedTuple):
    """Seconds a step of one kind of kernel; `product_seconds` of those with products, which did `flops`."""

    seconds: float
    product_seconds: float
    flops: float


class Profile(NamedTuple):
    """Seconds a step: on the wall, by kind, and of the slowest kernels (name, kind, seconds, shape, scope)."""

    step_seconds: float
    kinds: dict[str, KindTime]
    slowest: list[tuple[str, str, float, str, str]]

    @property
    def uncovered(self) -> float:
        """Seconds a step in which no kernel ran: dispatch, and gaps between kernels."""
        return max(self.step_seconds - sum(time.seconds for time in self.kinds.values()), 0.0)


_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


def read_program(text: str) -> Program:
    """Returns what a compiled program's text (`compiled.as_text()`) says of its instructions."""
    module = re.match(r"HloModule ([\w.\-]+)", text)
    computations: dict[str, list[Instruction]] = {}
    inside: list[Instruction] = []
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            inside = computations.setdefault(found[1], [])
        elif found := _LINE.match(line):
            inside.append(_instruction(line, found))
    every = {one.name: one for lines in computations.values() for one in lines}
    users: dict[str, list[str]] = defaultdict(list)
    for one in every.values():
        for operand in one.operands:
            users[operand].append(one.name)
    return Program(module[1] if module else "", computations, every, users)


def _instruction(line: str, found: re.Match) -> Instruction:
    shape = re.search(r"\w+\[[\d,]*\]", found[2])
    dimensions = tuple(int(size) for size in re.findall(r"\d+", shape[0].partition("[")[2])) if shape else ()
    depth, end = 1, found.end()
    while depth and end < len(line):  # operands end where the opcode's parenthesis closes
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    operands = tuple(re.findall(r"%([\w.\-]+)", line[found.end() : end]))
    scope = re.search(r'op_name="((?:[^"\\]|\\.)*)"', line[end:])
    return Instruction(
        found[1], found[3], dimensions, shape[0] if shape else "", operands, scope[1] if scope else "", line[end:]
    )


def classify(program: Program, name: str) -> Kernel:
    """Returns the kind and the FLOPs of the kernel that runs instruction `name`; what is unknown is the rest."""
    one = program.instructions.get(name)
    if one is None:
        return Kernel("the rest", 0.0)
    if one.opcode.startswith(COLLECTIVES):
        return Kernel("collectives", 0.0)
    called = re.search(r"calls=%?([\w.\-]+)", one.attributes)
    body = program.computations.get(called[1], []) if called and one.opcode not in CONTAINERS else [one]
    scope = one.scope or next((part.scope for part in body if part.scope), "") or _scope_nearby(program, one)
    products = [(product_flops(part, program.instructions), part) for part in body]
    flops, largest = max(products, key=lambda entry: entry[0], default=(0.0, one))
    if flops:
        return Kernel(_kind_of(largest, scope, True), sum(count for count, _ in products))
    votes: dict[str, float] = defaultdict(float)
    for part in body:
        if part.opcode not in FREE:
            votes[_kind_of(part, scope, False)] += _work(part, program.instructions)
    return Kernel(max(votes, key=votes.__getitem__) if votes else _kind_of(one, scope, False), 0.0)


def _scope_nearby(program: Program, one: Instruction) -> str:
    """Returns the scope of what uses a result, or of what it is made from: the compiler rewrites some without one."""
    for neighbours in (lambda other: program.users.get(other.name, []), lambda other: other.operands):
        level = [one]
        for _ in range(4):
            names = [name for other in level for name in neighbours(other) if name in program.instructions]
            level = [program.instructions[name] for name in names if program.instructions[name].opcode != "parameter"]
            if found := next((other.scope for other in level if other.scope), ""):
                return found
    return ""


def product_flops(one: Instruction, instructions: dict[str, Instruction]) -> float:
    """Returns the FLOPs of a matrix product (twice its multiplications), or 0 for any other instruction.

    A TPU's compiler writes products as convolutions, a GPU's as calls of cuBLAS. What gives one row or column is a sum.
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


def _work(one: Instruction, instructions: dict[str, Instruction]) -> float:
    """Returns about how much arithmetic an instruction is, in elements."""
    sizes = [math.prod(one.dimensions)]
    if one.opcode.startswith(("reduce", "sort", "scatter")):
        sizes += [math.prod(instructions[name].dimensions) for name in one.operands if name in instructions]
    return max(sizes) * (10.0 if one.opcode in HEAVY else 1.0)


def _kind_of(one: Instruction, fallback: str, product: bool) -> str:
    scopes = re.findall(r"[\w.>,\-]+", one.scope or fallback)
    known = set(scopes)
    for own in ("optimizer", "masking", "dropout"):
        if own in known:
            return own
    if one.opcode in MOVES:
        return "casts and layout"
    if "encoder" in known or "head" in known or "loss" in known:
        if any(scope == "norm" or scope.endswith("_norm") for scope in scopes):
            return "normalisation"
        if "encoder" not in known:
            return "logits"
        if "attention" in known:
            dense = DENSE & set(scopes[scopes.index("attention") + 1 :])
            stacked = re.search(r"lhs_batch_dims=\{\d|\"lhs_batch_dimensions\":\[\"", one.attributes)
            return "products" if product and (dense or not stacked) else "biases" if dense else "attention"
        if "feed_forward" in known:
            dense = DENSE & set(scopes[scopes.index("feed_forward") + 1 :])
            return "products" if product else "biases" if dense else "activation"
        if "embeddings" in known:
            return "products" if product else "embeddings"
        if not any(scope.startswith("layers_") for scope in scopes):
            return "attention"  # masks and rotary tables, which layers share
    return "the rest"


def read_intervals(path: Path, program: Program) -> list[Interval]:
    """Returns each run of a kernel of `program` that a profile (an .xplane.pb file) holds, of the first device."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = sorted(plane.name for plane in planes if re.match(r"/device:(GPU|TPU):\d+", plane.name))
    plane = next(plane for plane in planes if plane.name == (devices[0] if devices else "/host:CPU"))
    lines = list(plane.lines)
    if devices:
        # A GPU's streams hold its kernels; where the line of operations is there, it says the same once more.
        lines = [line for line in lines if line.name == "XLA Ops"] or [
            line for line in lines if line.name.startswith("Stream")
        ]
    spelled = {re.sub(r"[.\-]", "_", name): name for name in program.instructions}  # as a GPU's kernels are called
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
            name = name if name in program.instructions else spelled.get(event.name, name)
            intervals.append((stats.get("_p"), Interval(name, event.start_ns, end)))
    # A CPU's kernel may go on in other threads after the one that began it has left it: its end has an event then.
    return [one._replace(end=max(one.end, finished.get(number, 0.0))) for number, one in intervals]


def share_time(intervals: Iterable[Interval], containers: Callable[[str], bool]) -> dict[str, float]:
    """Returns the nanoseconds of each kernel, such that every moment is counted once.

    Kernels that run at the same time share it equally; a container (a loop, a call) has what none of its kernels has.
    """
    edges = sorted(
        (moment, begins, number, one.name)
        for number, one in enumerate(sorted(intervals, key=lambda one: one.start))
        if one.end > one.start
        for moment, begins in ((one.start, True), (one.end, False))
    )
    shares: dict[str, float] = defaultdict(float)
    running: dict[int, str] = {}
    outer: dict[int, str] = {}
    before = 0.0
    for moment, begins, number, name in edges:
        if running:
            for other in running.values():
                shares[other] += (moment - before) / len(running)
        elif outer:
            shares[outer[max(outer)]] += moment - before
        before = moment
        active = outer if containers(name) else running
        if begins:
            active[number] = name
        else:
            active.pop(number, None)
    return dict(shares)


def summarise(program: Program, nanoseconds: dict[str, float], steps: int, wall_seconds: float) -> Profile:
    """Returns the profile of `steps` runs of a program that took wall_seconds, from the time of its kernels."""
    count = _runs_in_loops(program)
    times = {kind: [0.0, 0.0, 0.0] for kind in KINDS}
    slowest = []
    for name, duration in nanoseconds.items():
        kernel, seconds = classify(program, name), duration / 1e9 / steps
        entry = times[kernel.kind]
        entry[0] += seconds
        if kernel.flops:
            entry[1] += seconds
            entry[2] += kernel.flops * count.get(name, 1)
        one = program.instructions.get(name)
        slowest.append((name, kernel.kind, seconds, one.shape if one else "", one.scope if one else ""))
    slowest.sort(key=lambda entry: -entry[2])
    kinds = {kind: KindTime(*entry) for kind, entry in times.items() if entry[0]}
    return Profile(wall_seconds / steps, kinds, slowest[:30])


def _runs_in_loops(program: Program) -> dict[str, int]:
    """Returns how often instructions within loops of known length run in a step; all others run once."""
    counts: dict[str, int] = {}

    def count(computation: str, times: int) -> None:
        for one in program.computations.get(computation, []):
            counts[one.name] = times
            if one.opcode in CONTAINERS:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.attributes)
                for inner in re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", one.attributes):
                    count(inner, times * (int(trips[1]) if trips and one.opcode == "while" else 1))

    called = {name for one in program.instructions.values() for name in re.findall(r"=%([\w.\-]+)", one.attributes)}
    for entry in set(program.computations) - called:
        count(entry, 1)
    return counts


def profile_steps(compiled_text: str, run_steps: Callable[[], float], steps: int) -> Profile:
    """Returns the profile of `run_steps()`, which runs `steps` steps to their end and returns their wall seconds."""
    program = read_program(compiled_text)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing Python would slow the host
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            wall = run_steps()
        intervals = [one for path in Path(folder).rglob("*.xplane.pb") for one in read_intervals(path, program)]

    def holds_others(name: str) -> bool:
        return name in program.instructions and program.instructions[name].opcode in CONTAINERS

    return summarise(program, share_time(intervals, holds_others), steps, wall)


def profile_table(profile: Profile, peak: float | None = None) -> list[list[str]]:
    """Returns rows of text, the heading first: kind, milliseconds a step, share, GFLOP/s of products, share of peak."""
    rows = [["kind", "ms a step", "share", "GFLOP/s", "of peak"]]
    for kind, time in sorted(profile.kinds.items(), key=lambda entry: -entry[1].seconds):
        rate = time.flops / time.product_seconds if time.product_seconds else 0.0
        rows.append([
            kind, f"{time.seconds * 1e3:,.1f}", f"{time.seconds / profile.step_seconds:.1%}",
            f"{rate / 1e9:,.0f}" if rate else "", f"{rate / peak:.0%}" if rate and peak else "",
        ])  # fmt: skip
    gap = profile.uncovered
    rows.append(["no kernel", f"{gap * 1e3:,.1f}", f"{gap / profile.step_seconds:.1%}", "", ""])
    return [*rows, ["whole step", f"{profile.step_seconds * 1e3:,.1f}", "100.0%", "", ""]]


def slowest_table(profile: Profile, count: int = 15) -> list[list[str]]:
    """Returns rows of text, the heading first: the slowest kernels, their kind, shape, and where they come from."""
    rows = [["kernel", "kind", "ms a step", "result", "from"]]
    for name, kind, seconds, shape, scope in profile.slowest[:count]:
        rows.append([name, kind, f"{seconds * 1e3:,.2f}", shape, scope.partition("/")[2]])
    return rows


def align(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of text in columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(re.match(r"[\d,.%]*$", cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    )


def draw(profile: Profile, path: Path, title: str) -> None:
    """Writes a figure of the seconds by kind, longest first; the part that products took is darker."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = sorted(profile.kinds.items(), key=lambda entry: entry[1].seconds)
    names = ["no kernel", *(kind for kind, _ in kinds)]
    whole = [profile.uncovered * 1e3, *(time.seconds * 1e3 for _, time in kinds)]
    products = [0.0, *(time.product_seconds * 1e3 for _, time in kinds)]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(names) + 1.2), layout="constrained")
    axes.barh(names, whole, color="#9fb8d9", label="other kernels")
    axes.barh(names, products, color="#2b5c9e", label="kernels with a matrix product")
    for place, value in enumerate(whole):
        axes.annotate(f" {value / profile.step_seconds / 10:.1f}%", (value, place), va="center", fontsize=8)
    axes.set_xlabel(f"milliseconds of a step of {profile.step_seconds * 1e3:,.0f}")
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
