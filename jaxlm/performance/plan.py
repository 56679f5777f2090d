"""What a config needs on a mesh of absent devices: memory, collectives, FLOPs and hours."""

import argparse
import dataclasses
import difflib
import importlib.util
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxlm.config import Phase, config_from_dict, config_to_dict, split_overrides
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.execution import Execution
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.table import make_objective
from jaxlm.optimizer.optimizers import drop_frozen
from jaxlm.optimizer.parameter_rules import frozen_mask
from jaxlm.performance.collectives import Collective, read_collectives, sent
from jaxlm.run import load_run_config
from jaxlm.runtime import hardware, sharding
from jaxlm.runtime.clock import TIME_UNITS
from jaxlm.runtime.hardware import CHIPS
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.settings import MAX_CHOSEN_VOCABULARY
from jaxlm.step import Assembly, assemble

AXES = ("data", "fsdp", "tensor")
GIB = 2**30
# Settings that let libtpu load on a machine without TPUs, and beside another process that uses it.
LIBTPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def plan(config: Any, mesh: dict[str, int], chip: str = "v5e", mfu: float = 0.4, number: int | None = None,
         formula: bool = False) -> dict[str, Any]:  # fmt: skip
    """Returns what training needs on `mesh`, the sizes of data, fsdp and tensor, of chips that need not be attached.

    Memory and collectives are those of phase `number`, counted from 1, by default the one that needs the most memory;
    bytes are per device. For TPUs, if libtpu is installed and `formula` is off, they come from XLA, which compiles the
    step for the chip; otherwise from formulas. FLOPs are the objective's; hours follow from `mfu`, a fraction of the
    datasheet's peak. Raises UserError.
    """
    config = config_from_dict(config_to_dict(config), "config")
    if chip not in CHIPS:
        near = difflib.get_close_matches(chip, CHIPS, 1)
        raise UserError(f"--chip={chip} is unknown; the chips are {', '.join(CHIPS)}"
                        + (f"; did you mean {near[0]}?" if near else ""))  # fmt: skip
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu:g}: must be above 0 and at most 1, such as 0.4")
    about, devices = CHIPS[chip], math.prod(mesh.values())
    shape = slice_shape(chip, devices)
    abstract = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    dtype: Any = "bfloat16" if config.train.compute_dtype == "auto" else config.train.compute_dtype
    config.train.compute_dtype = dtype
    if not config.train.logits_megabytes:
        config.train.logits_megabytes = hardware.logits_bytes(0, int(about.memory * GIB)) // 2**20
    vocabulary = config.model.vocab_size or config.tokenizer.vocab_size or MAX_CHOSEN_VOCABULARY
    encoder = encoder_config(config.model, vocabulary)
    device = SimpleNamespace(platform="tpu" if about.slices else "gpu", device_kind=about.kind)
    assembly = assemble(config, encoder, SYNTHETIC_FACTS, abstract, device.platform)
    phases = assembly.phases
    for phase in phases:
        sharding.check_batch(cast(Mesh, abstract), phase.batch_size, phase.accumulate)
    if number is not None and not 1 <= number <= len(phases):
        raise UserError(f"--phase={number}: the config's phases are 1 to {len(phases)}")
    peak = hardware.peak_flops(device, cast(Any, dtype))

    def memory_of(number: int) -> dict[str, int]:
        return formula_memory(assembly, number - 1, mesh)

    if number is None:
        number = max(range(1, len(phases) + 1), key=lambda n: sum(memory_of(n).values()))
    phase, memory = phases[number - 1], memory_of(number)
    available, how = int(about.memory * GIB), "formula"
    collectives = formula_collectives(encoder, phase, mesh, memory["parameters"], dtype)
    objective = assembly.objectives[number - 1]
    result: dict[str, Any] = {"xla_flops_per_step": None, "xla_bytes": None, "xla_error": None, "needed_bytes": None}
    if can_compile(chip) and not formula:
        print(f"compiling for {chip}; a large model takes minutes, and --formula skips it", file=sys.stderr)
        described = assemble(config, encoder, SYNTHETIC_FACTS, tpu_mesh(chip, shape, mesh), "tpu")
        compiled = compile_step(described, number - 1, schedule_length(config, phases), chip)
        if isinstance(compiled, OutOfMemory):
            result |= {"xla_error": compiled.message, "needed_bytes": compiled.needed}
            available, how = compiled.available or available, f"XLA for {chip}; collectives by formula"
        else:
            collectives, how = read_collectives(compiled.as_text(), mesh), f"XLA for {chip}"
            result["xla_bytes"] = stats = device_bytes(compiled)
            result["xla_flops_per_step"] = compiled.cost_analysis().get("flops", 0.0) * devices
            result["needed_bytes"] = sum(stats.values())
    needed = result["needed_bytes"] or sum(memory.values())
    flops, seconds = _flops(objective, phase), mfu * peak.flops * devices
    steps = steps_of(config, phases)
    run = tokens = None
    if steps is not None:
        run = sum(n * _flops(o, p) for n, o, p in zip(steps, assembly.objectives, phases, strict=True))
        tokens = sum(n * _tokens(p) for n, p in zip(steps, phases, strict=True))
    return result | {
        "chip": chip,
        "slice": shape,
        "devices": devices,
        "mesh": dict(mesh),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(assembly.abstract_state["params"])),
        "phase": number,
        "phases": len(phases),
        "batch_size": phase.batch_size,
        "sequence_length": phase.sequence_length,
        "accumulate": phase.accumulate,
        "rematerialise": config.train.rematerialise,
        "compute_dtype": dtype,
        "analysis": how,
        "formula_bytes": memory,
        "needed_bytes": needed,
        "available_bytes": available,
        "headroom_bytes": available - needed,
        "fits": needed <= available,
        "collectives": [c._asdict() | {"axes": list(c.axes)} for c in collectives],
        "flops_per_step": flops,
        "peak_flops_per_device": peak.flops,
        "mfu": mfu,
        "step_seconds": flops / seconds,
        "tokens_per_second": _tokens(phase) * seconds / flops,
        "run_steps": None if steps is None else sum(steps),
        "run_tokens": tokens,
        "run_flops": run,
        "run_hours": None if run is None else run / seconds / 3600,
    }


def can_compile(chip: str) -> bool:
    """Returns whether XLA's compiler for the chip is installed."""
    return bool(CHIPS[chip].slices) and importlib.util.find_spec("libtpu") is not None


def read_mesh(text: str) -> dict[str, int]:
    """Returns the sizes of data, fsdp and tensor from `data=8,fsdp=4,tensor=2`; a missing axis has size 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not re.fullmatch(r"[1-9]\d*", size):
            raise UserError(f"--mesh={text}: {part!r} is not AXIS=SIZE; write it as data=8,fsdp=4,tensor=2")
        sizes[name] = int(size)
    return sizes


def slice_shape(chip: str, devices: int) -> str:
    """Returns the shape of a TPU slice of so many chips, or "" for GPUs. Raises UserError if there is no such slice."""
    shapes = {math.prod(int(n) for n in shape.split("x")): shape for shape in CHIPS[chip].slices}
    if not shapes or devices in shapes:
        return shapes.get(devices, "")
    near = [n for n in (max((n for n in shapes if n < devices), default=None),
                        min((n for n in shapes if n > devices), default=None)) if n]  # fmt: skip
    raise UserError(f"the mesh has {devices} devices, but no {chip} slice has so many chips; the nearest slices have "
                    + " and ".join(f"{n} ({shapes[n]})" for n in near))  # fmt: skip


def tpu_mesh(chip: str, shape: str, mesh: dict[str, int]) -> Mesh:
    """Returns the mesh over the described chips of a slice. Raises UserError if libtpu does not know the slice."""
    from jax.experimental import topologies

    for name, value in LIBTPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    more = {"chips_per_host_bounds": [1, 1, 1]} if shape == "1x1" else {}
    try:
        described = topologies.get_topology_desc(f"{chip}:{shape}", "tpu", **more)
    except Exception as error:
        raise UserError(f"libtpu does not know {chip}:{shape} ({_first_line(error)}); install the one that fits "
                        "the installed jax, or use --formula") from error  # fmt: skip
    sizes = SimpleNamespace(slices=1, **mesh)
    return sharding.make_mesh(sizes, described.devices)


class OutOfMemory(NamedTuple):
    """XLA's error for a program that does not fit into memory, with the bytes that it needs and the bytes available."""

    message: str
    needed: int | None
    available: int | None


def compile_step(assembly: Assembly, number: int, total: float, chip: str) -> Any:
    """Returns the compiled step of phase `number`, or OutOfMemory. Raises UserError if XLA refuses it otherwise."""
    try:
        arguments = assembly.abstract_arguments(number)
        return assembly.compile(assembly.lower(assembly.train_step(number, total), *arguments))
    except Exception as error:
        if not hardware.out_of_memory(error):
            raise UserError(f"XLA cannot compile the step for {chip}: {_first_line(error)}") from error
        return read_out_of_memory(str(error))


def read_out_of_memory(text: str) -> OutOfMemory:
    """Returns the content of XLA's message, such as `Used 23.05G of 15.75G hbm`."""
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", text)
    message = " ".join((found[0] if found else text.splitlines()[0]).split())
    if not found:
        return OutOfMemory(message, None, None)
    used, limit = (int(float(found[i]) * scale[found[i + 1]]) for i in (1, 3))
    return OutOfMemory(message, used, limit)


def device_bytes(compiled: Any) -> dict[str, int]:
    """Returns the bytes of a compiled step on a device by XLA's analysis, in parts that add up."""
    stats = compiled.memory_analysis()
    return {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def formula_memory(assembly: Assembly, number: int, mesh: dict[str, int]) -> dict[str, int]:
    """Returns bytes per device: parameters, optimizer, gradients and batch exactly by their shapes; activations nearly.

    Activations are what differentiation keeps from the forward pass to the backward pass, counted from the shapes of
    the traced loss, and as working space one layer's and one piece of logits with its gradient. XLA's fusions need
    less.
    """
    config, phase = assembly.config, assembly.phases[number]
    state, batch, _, _, knobs = assembly.abstract_arguments(number)

    def bytes_of(tree: Any) -> int:
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                   for leaf in jax.tree.leaves(tree))  # fmt: skip

    frozen = frozen_mask(config.optimizer, state["params"])
    gradients = bytes_of(drop_frozen(frozen, state["params"]))
    rows = phase.batch_size // (sharding.batch_parts(cast(Mesh, SimpleNamespace(shape=mesh))) * phase.accumulate)
    flash = assembly.execution.attention == "flash"  # for the other kernels, XLA's residuals are close enough
    one = dataclasses.replace(assembly.execution, rows=None, attention="flash" if flash else "xla")

    def kept(execution: Execution) -> int:
        objective = make_objective(config, phase, assembly.encoder, execution, SYNTHETIC_FACTS)
        return kept_bytes(objective, assembly.encoder, execution, rows, phase.sequence_length, knobs, mesh["tensor"])

    activations = kept(one)
    layers = activations if one.rematerialise == "none" else kept(dataclasses.replace(one, rematerialise="none"))
    return {
        "parameters": bytes_of(state["params"]),
        "optimizer": bytes_of(state["opt_state"]),
        "gradients": gradients * (2 if phase.accumulate > 1 else 1),
        "batch": bytes_of(batch),
        "activations": activations
        + layers // assembly.encoder.layers
        + 2 * assembly.objectives[number].logits_memory(rows, phase.sequence_length),
    }


def kept_bytes(
    objective: Objective, encoder: EncoderConfig, execution: Execution, rows: int, length: int, knobs: Any, tensor: int
) -> int:
    """Returns the bytes that differentiation of the loss keeps for rows [rows, length], without the parameters.

    Bits of masks and of dropout are computed again, and of a layer's attention matrices [B, N, L, L] XLA keeps one in
    the compute dtype. Along `tensor`, arrays with the feed-forward's width, heads or vocabulary are split.
    """
    batch = {name: jax.ShapeDtypeStruct((rows, *column.shape), column.dtype)
             for name, column in objective.columns(length).items()}  # fmt: skip
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    prepared = jax.eval_shape(objective.prepare, batch, keys, knobs).rows
    seeds = jax.ShapeDtypeStruct((rows, 2), np.uint32) if objective.dropout else None
    params = jax.eval_shape(lambda: objective.init(0))

    def backward(params: Any, prepared: Any, seeds: Any) -> Any:
        return jax.vjp(lambda params: objective.sums(params, prepared, seeds)["loss"], params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, params, prepared, seeds))
    counts = Counter((leaf.shape, leaf.dtype) for leaf in residuals)
    counts -= Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
    split = {encoder.feed_forward_width, encoder.heads, encoder.vocab_size}
    square = (rows, encoder.heads, length, length)
    squares = min(sum(count for (shape, _), count in counts.items() if shape == square), encoder.layers)
    counts = Counter({key: n for key, n in counts.items() if key[0] != square and key[1] != np.bool_})
    counts[square, np.dtype(execution.compute_dtype)] = squares
    total = 0
    for (shape, dtype), count in counts.items():
        parts = tensor if any(n in split and n % tensor == 0 for n in shape[1:]) else 1
        total += count * math.prod(shape) * dtype.itemsize // parts
    return total


def formula_collectives(encoder: EncoderConfig, phase: Phase, mesh: dict, held: int, dtype: str) -> list[Collective]:
    """Returns the least communication of a step along each axis; `held` is the bytes of a device's float32 parameters.

    Gradients are summed over data; over fsdp parameters are gathered for both passes of each micro-batch, and gradients
    scattered; over tensor each layer sums its two outputs forward and its two inputs' gradients backward.
    """
    data, fsdp = mesh["data"], mesh["fsdp"]
    micro = phase.accumulate
    rows = phase.batch_size // (data * fsdp * micro)
    width = np.dtype(np.float32).itemsize if dtype == "float32" else 2
    stream = rows * phase.sequence_length * encoder.width * width
    needs = [
        ("all-gather", "fsdp", 2 * micro, held * fsdp * width // 4),
        ("reduce-scatter", "fsdp", micro, held * fsdp),
        ("all-reduce", "data", 1, held),
        ("all-reduce", "tensor", 4 * encoder.layers * micro, stream),
    ]
    return [Collective(kind, (axis,), mesh[axis], count, count * size, count * sent(kind, size, mesh[axis]))
            for kind, axis, count, size in needs if mesh[axis] > 1]  # fmt: skip


def steps_of(config: Any, phases: Sequence[Phase]) -> list[int] | None:
    """Returns the updates of each phase; None if they depend on the data or on a time budget."""
    train, earlier = config.train, [phase.steps or 0 for phase in phases[:-1]]
    if train.steps is not None:
        bounds = np.minimum(np.cumsum([0, *earlier]), train.steps).tolist()
        return [end - begin for begin, end in zip(bounds, [*bounds[1:], train.steps], strict=True)]
    if train.tokens is None:
        return None
    spent = sum(n * _tokens(phase) for n, phase in zip(earlier, phases, strict=False))
    return [*earlier, max(math.ceil((train.tokens - spent) / _tokens(phases[-1])), 0)]


def _tokens(phase: Phase) -> int:
    return phase.batch_size * phase.sequence_length


def schedule_length(config: Any, phases: Sequence[Phase]) -> float:
    """Returns the length of the run's schedule, or if data or a clock decide it, that of a time budget."""
    steps = steps_of(config, phases)
    return TIME_UNITS if steps is None else sum(steps)


def _flops(objective: Objective, phase: Phase) -> float:
    return objective.flops(phase.batch_size, phase.sequence_length, _tokens(phase), objective.knobs(0.0))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe(result: dict[str, Any], name: str) -> str:
    """Returns the plan as text."""
    chip, devices, gib = result["chip"], result["devices"], lambda size: f"{size / GIB:8.3f}"
    shape = f" ({result['slice']})" if result["slice"] else ""
    mesh = " x ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    rows = result["batch_size"] // (result["mesh"]["data"] * result["mesh"]["fsdp"] * result["accumulate"])
    lines = [
        f"{name} on {devices} {chip}{shape}, mesh {mesh}, products in {result['compute_dtype']}",
        f"{result['parameters']:,} parameters",
        f"phase {result['phase']} of {result['phases']}: {result['batch_size']:,} rows of {result['sequence_length']:,}"
        f" tokens in {result['accumulate']} micro-batches, {rows} rows per device at a time"
        + (f", rematerialise={result['rematerialise']}" if result["rematerialise"] != "none" else ""),
        "",
        "GiB per device, by formula",
    ]
    lines += [f"  {part:<12} {gib(size)}" for part, size in result["formula_bytes"].items()]
    lines.append(f"  {'total':<12} {gib(sum(result['formula_bytes'].values()))}")
    if result["xla_bytes"]:
        lines.append(f"GiB per device, by XLA's analysis of the step compiled for {chip}")
        lines += [f"  {part:<12} {gib(size)}" for part, size in result["xla_bytes"].items()]
        lines.append(f"  {'total':<12} {gib(result['needed_bytes'])}")
    if result["xla_error"]:
        lines.append(f"XLA for {chip} refuses to compile it: {result['xla_error']}")
    lines.append(
        f"{'fits' if result['fits'] else 'DOES NOT FIT'}: {result['needed_bytes'] / GIB:.2f} of "
        f"{result['available_bytes'] / GIB:.2f} GiB, {result['headroom_bytes'] / GIB:.2f} left"
    )
    if not result["analysis"].startswith("XLA"):
        lines.append(_why_formula(chip))
    by = "from the compiled step" if result["xla_bytes"] else "by formula"
    lines += ["", f"communication of a step on a device, {by}"]
    for entry in result["collectives"]:
        axes = f"{'x'.join(entry['axes'])} ({entry['devices']})"
        lines.append(f"  {entry['kind']:<18} over {axes:<18} {entry['times']:>7,} times  {gib(entry['bytes'])} GiB, "
                     f"{gib(entry['sent_bytes'])} sent")  # fmt: skip
    if not result["collectives"]:
        lines.append("  none")
    lines += [
        "",
        f"{result['flops_per_step']:.3e} FLOPs per step (products, forward and backward)",
    ]
    if result["xla_flops_per_step"]:
        lines[-1] += f"; XLA counts {result['xla_flops_per_step']:.3e}, with the body of each loop counted once"
    lines.append(
        f"at an MFU of {result['mfu']:.0%} of {result['peak_flops_per_device'] / 1e12:,.0f} TFLOP/s per device: "
        f"{result['step_seconds']:.3f} s per step, {result['tokens_per_second']:,.0f} tokens/s"
    )
    if result["run_hours"] is None:
        lines.append(
            "the length of the run depends on the data or the clock; set train.tokens or train.steps to estimate it"
        )
    else:
        lines.append(f"the run: {result['run_steps']:,} steps, {result['run_tokens']:.3e} tokens, "
                     f"{result['run_flops']:.3e} FLOPs: {result['run_hours']:,.1f} hours")  # fmt: skip
    return "\n".join(lines)


def _why_formula(chip: str) -> str:
    if not CHIPS[chip].slices:
        return f"{chip}: by formula alone, since a step cannot be compiled for a GPU that is not attached"
    if can_compile(chip):
        return "by formula, because of --formula"
    return "by formula, since libtpu is not installed; pip install 'jaxlm[plan]' adds XLA's analysis for TPUs"


def main(argv: Sequence[str]) -> int:
    """`jaxlm plan --config=CONFIG[:ARG] --mesh=data=8,fsdp=4,tensor=2 [--chip=v5e] [--mfu=0.4] [--json]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm plan", description="Estimate memory, communication and time of a run on absent devices.",
        usage="%(prog)s --config=CONFIG[:ARG] --mesh=AXIS=N,... [--chip=CHIP]\n"
        "                  [--mfu=MFU] [--phase=PHASE] [--formula] [--json]\n"
        "                  [--config.section.key=VALUE ...]",
        formatter_class=HelpFormatter,
        epilog="example:\n  jaxlm plan --config=encoder_1b --mesh=data=16,fsdp=16 --chip=v5e",
    )  # fmt: skip
    parser.add_argument(
        "--config", required=True, metavar="CONFIG[:ARG]", help="a recipe, a config file, or a run's config.json"
    )
    parser.add_argument("--mesh", required=True, metavar="AXIS=N,...", help="devices along data, fsdp and tensor")
    parser.add_argument("--chip", default="v5e", help=f"one of {', '.join(CHIPS)}")
    parser.add_argument("--mfu", type=float, default=0.4, help="expected fraction of the chip's peak")
    parser.add_argument("--phase", type=int, help="phase to analyse, from 1; default: the one that needs most")
    parser.add_argument("--formula", action="store_true", help="do not compile the step, which may take minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(rest)
    jax.config.update("jax_platforms", "cpu")  # leave an attached accelerator free
    jax.config.update("jax_enable_compilation_cache", False)  # a program for an absent chip is never used again
    mesh = read_mesh(args.mesh)
    config, _ = load_run_config(args.config, overrides)
    result = plan(config, mesh, args.chip, args.mfu, args.phase, args.formula)
    if args.json:
        print_json(result)
    else:
        print(describe(result, args.config))
    return 0
