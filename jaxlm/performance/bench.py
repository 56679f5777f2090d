"""The speed of the training step: tokens per second, MFU, memory, compile time, input rate."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import (
    apply_override,
    check_config,
    config_from_dict,
    config_to_dict,
    default_config,
    phases_of,
    split_overrides,
)
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.presets import PRESETS
from jaxlm.objectives.objective import Column
from jaxlm.performance.profile import Profile, profile_steps
from jaxlm.performance.profile_report import align, draw, profile_table, slowest_table
from jaxlm.run import load_run_config
from jaxlm.runtime import hardware, sharding
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.settings import MAX_CHOSEN_VOCABULARY
from jaxlm.step import assemble
from jaxlm.storage import local_path

SCHEDULE_STEPS = 1000.0  # the length of the schedule; the rate does not matter here
MEASURING_SECONDS = 3.0  # seconds to measure the peak, before the steps and again after them
PROFILED_STEPS = 5
DISPATCHED = 5  # steps dispatched to an accelerator before waiting


def bench(
    config: Any, steps: int = 10, warmup: int = 2, documents: int = 1, padding: float = 0.0, profiled: int = 0
) -> dict[str, Any]:
    """Times the training step of a config's last phase, the same step that `jaxlm train` runs.

    The batch is synthetic and stays on the device, so the accelerator alone is timed. Each row holds `documents`
    documents of equal length and ends with the fraction `padding` of padding. Seconds are medians over single steps,
    from the call to the finished state; on accelerators, over groups of DISPATCHED steps. `spread` is the interquartile
    range divided by the median. FLOPs are the objective's: matrix products at every token of a row, padding included,
    and attention over whole rows. `mfu_measured` divides by the rate of the largest square product, timed before and
    after the steps; `mfu_datasheet` by the manufacturer's figure if it is known; `mfu` is the latter if there is one.
    `profiled` further steps are profiled: "profile" is their Profile. Raises UserError.
    """
    config = config_from_dict(config_to_dict(config), "config")
    vocabulary = config.model.vocab_size or config.tokenizer.vocab_size or MAX_CHOSEN_VOCABULARY
    encoder = encoder_config(config.model, vocabulary)
    mesh = sharding.make_mesh(config.mesh)
    device = mesh.devices.flat[0]
    if config.train.compute_dtype == "auto":
        config.train.compute_dtype = "bfloat16" if hardware.fast_bfloat16() else "float32"
    dtype = config.train.compute_dtype
    assembly = assemble(config, encoder, SYNTHETIC_FACTS, mesh, device.platform)
    number, phase, objective = len(assembly.phases) - 1, assembly.phases[-1], assembly.objectives[-1]
    batch_size, length = phase.batch_size, phase.sequence_length
    sharding.check_batch(mesh, batch_size, phase.accumulate)
    rates = [hardware.measure_product(device, dtype, MEASURING_SECONDS)]

    state = assembly.fresh_state()  # before the batch, so that sizes beyond the memory are rejected
    batch = synthetic_batch(objective.columns(length), batch_size, length, documents, padding)
    real = int((batch["segment_ids"] > 0).sum())
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    knobs = objective.knobs(0.0)
    scalars = (np.float32(1), {name: np.float32(knob) for name, knob in knobs.items()})
    with _cache_hits() as hits, _scopes_in_key(profiled > 0):
        begin = time.perf_counter()
        lowered = assembly.lower(assembly.train_step(number, SCHEDULE_STEPS), state, batch, np.int32(0), *scalars)
        trace_seconds = time.perf_counter() - begin
        # A profile sees no kernels within a GPU's command buffers.
        options = {"xla_gpu_enable_command_buffer": ""} if profiled and device.platform == "gpu" else {}
        compiled = assembly.compile(lowered, **options)
        compile_seconds = time.perf_counter() - begin

    in_turn = 1 if device.platform == "cpu" else DISPATCHED  # a run does not wait for each step either

    def run_steps(count: int) -> list[float]:
        nonlocal state
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            for update in range(in_turn):
                state, metrics = compiled(state, batch, np.int32(update), *scalars)
            jax.block_until_ready((state, metrics))
            seconds.append((time.perf_counter() - begin) / in_turn)
        return seconds

    run_steps(warmup)
    seconds = run_steps(steps)
    memory = hardware.peak_memory_bytes()
    profile = None
    if profiled:
        text, count = compiled.as_text() or "", profiled * in_turn
        profile = profile_steps(text, lambda: sum(run_steps(profiled)) * in_turn, count)
    rates.append(hardware.measure_product(device, dtype, MEASURING_SECONDS))

    median = statistics.median(seconds)
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
    flops = objective.flops(batch_size, length, real, knobs)
    size, rate = max(rates, key=lambda entry: entry[1])
    # CPU devices share one processor.
    measured = rate * mesh.size / (jax.local_device_count() if device.platform == "cpu" else 1)
    datasheet = hardware.datasheet_flops(device, dtype)
    sheet = datasheet.flops * mesh.size if datasheet else None
    result = {
        "tokens_per_second": batch_size * length / median,
        "tokens_per_second_without_padding": real / median,
        "step_seconds": median,
        "spread": (quarters[2] - quarters[0]) / median,
        "steps": steps,
        "model_flops": flops,
        "model_flops_per_second": flops / median,
        "mfu": flops / median / (sheet or measured),
        "mfu_measured": flops / median / measured,
        "mfu_datasheet": flops / median / sheet if sheet else None,
        "peak_flops_per_second": sheet or measured,
        "measured_flops_per_second": measured,
        "peak_source": datasheet.source if datasheet else f"the measured {dtype} product of {size:,} x {size:,}",
        "peak_bytes": memory,
        "step_bytes": _step_bytes(compiled),
        "compile_seconds": compile_seconds,
        "trace_seconds": trace_seconds,
        "compiled_from_cache": bool(hits),
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(assembly.abstract_state["params"])),
        "objective": phase.objective,
        "batch_size": batch_size,
        "sequence_length": length,
        "documents_per_row": documents,
        "padding": 1 - real / (batch_size * length),
        "compute_dtype": dtype,
        "attention": assembly.execution.attention,
        "device": f"{mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
        "machine": hardware.describe_machine(),
    }
    return result | ({"profile": profile} if profile else {})


def synthetic_batch(
    columns: Mapping[str, Column], rows: int, length: int, documents: int, padding: float
) -> dict[str, np.ndarray]:
    """Returns a batch of random values for an objective's columns, each row of `documents` documents and then padding.

    Raises UserError if they do not fit.
    """
    real = length - round(padding * length) if 0 <= padding < 1 else 0
    if not 1 <= documents <= real:
        raise UserError(
            f"--documents={documents} and --padding={padding:g} do not fit into a row of {length} tokens: padding must "
            "be at least 0 and below 1, and each document needs a token"
        )
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(column.low, column.high, (rows, *column.shape)).astype(column.dtype)
        for name, column in columns.items()
    }
    batch["segment_ids"] = np.zeros((rows, length), np.int32)
    batch["segment_ids"][:, :real] = 1 + np.arange(real) * documents // real
    batch["tokens"][:, real:] = SYNTHETIC_FACTS.pad_id
    return batch


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """Collects the hits of the compilation cache."""
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


@contextlib.contextmanager
def _scopes_in_key(on: bool) -> Iterator[None]:
    """Includes named scopes in the keys of cached programs: otherwise a program may have those of older code."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, on or before)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _step_bytes(compiled: Any) -> int | None:
    """Returns the bytes of one step per device by XLA's analysis: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    alias = analysis.alias_size_in_bytes  # results that reuse the memory of arguments
    between = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - alias
    return int(analysis.argument_size_in_bytes + between)


def measure_input(config: Any) -> float:
    """Returns the tokens per second that the config's data give from disk, without a model. Raises UserError."""
    from jaxlm.data.prefetch import measure_input_rate
    from jaxlm.data.table import DATA

    phase = phases_of(config)[-1]
    rows = DATA[phase.objective].prepare(config).rows(config, (phase,), 0, 1)
    return measure_input_rate(rows, max(20, 2_000_000 // (phase.batch_size * phase.sequence_length)))


def resized(config: Any, batch: int | None, length: int | None) -> Any:
    """Returns the config reduced to its last phase, with other rows; --batch sets accumulate to 1. Raises UserError."""
    phase = phases_of(config)[-1]
    accumulate = 1 if batch else phase.accumulate
    batch, length = batch or phase.batch_size, length or phase.sequence_length
    config.train.update(objective=phase.objective, phases=(), batch_size=batch, accumulate=accumulate)
    config.data.sequence_length, config.masking.rate = length, phase.mask_rate
    config.model.rotary_base, config.optimizer.learning_rate = phase.rotary_base, phase.learning_rate
    check_config(config)
    return config


def shape_config(shape: str, vocab: int, batch: int, length: int) -> Any:
    """Returns a BERT of `LAYERSxWIDTH` with dropout 0.1, on which jaxlm is compared with peers. Raises UserError."""
    try:
        layers, width = (int(part) for part in shape.lower().split("x"))
    except ValueError as error:
        raise UserError(f"--shape={shape}: expected LAYERSxWIDTH, such as 4x256") from error
    config = default_config()
    config.model.update(PRESETS["bert_base"])
    config.model.update(layers=layers, width=width, heads=max(1, width // 64), feed_forward_width=4 * width)
    config.model.update(vocab_size=vocab, max_positions=max(512, length))
    config.train.batch_size, config.data.sequence_length = batch, length
    config.optimizer.learning_rate = 1e-4
    return config


def main(argv: Sequence[str]) -> int:
    """`jaxlm bench --config=FILE | --shape=4x256 [--device-only] [--profile[=FIGURE.png]] [--json]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm bench", description="Time the training step.", formatter_class=HelpFormatter,
        usage="%(prog)s --config=CONFIG[:ARG] | --shape=LAYERSxWIDTH [OPTION ...]\n"
        "                   [--config.section.key=VALUE ...]",
        epilog="examples:\n  jaxlm bench --shape=4x256 --batch=32 --length=128 --profile=step.png\n"
        "  jaxlm bench --config=modernbert_base --batch=4 --length=512 \\\n    --documents=4 --device-only",
    )  # fmt: skip
    parser.add_argument("--config", metavar="CONFIG[:ARG]", help="a recipe or a config file; its last phase is timed")
    parser.add_argument("--shape", metavar="LAYERSxWIDTH", help="instead of --config: a BERT of this shape")
    parser.add_argument("--vocab", type=int, help="with --shape: size of the vocabulary (default 30522)")
    parser.add_argument(
        "--batch", type=int, help="rows in a batch (default: the config's, or 32), without accumulation"
    )
    parser.add_argument("--length", type=int, help="tokens in a row (default: the config's, or 128)")
    parser.add_argument(
        "--documents", type=int, default=1, help="documents packed into a row; attention stays within each"
    )
    parser.add_argument("--padding", type=float, default=0.0, help="fraction of each row that is padding")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps (default 2)")
    parser.add_argument(
        "--profile",
        nargs="?",
        const=True,
        metavar="FIGURE.png",
        help="profile further steps: time by kind of kernel, as a table and optionally a figure",
    )
    parser.add_argument("--no-cache", action="store_true", help="compile even if the compiled step is in the cache")
    parser.add_argument("--device-only", action="store_true", help="use synthetic tokens only; do not read the data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")  # fmt: skip
    args = parser.parse_args(rest)
    if bool(args.config) == bool(args.shape):
        raise UserError("give either --config=FILE or --shape=LAYERSxWIDTH")
    if args.config and args.vocab is not None:
        raise UserError(f"--vocab={args.vocab} applies to --shape; with --config, set --config.model.vocab_size")
    for name, least in (("steps", 1), ("warmup", 0), ("vocab", 8), ("batch", 1), ("length", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name}={value}: must be at least {least}")
    if args.profile not in (None, True):
        args.profile = local_path("--profile", args.profile)
        if args.profile.is_dir():
            raise UserError(f"--profile={args.profile} is a folder; set a .png, .svg or .pdf file")
        if not args.profile.parent.is_dir():
            raise UserError(f"--profile={args.profile}: there is no directory {args.profile.parent}")
        if args.profile.suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--profile={args.profile}: must be a .png, .svg or .pdf file")
    if args.config:
        config, _ = load_run_config(args.config, overrides)
        config = resized(config, args.batch, args.length)
    else:
        config = shape_config(args.shape, args.vocab or 30_522, args.batch or 32, args.length or 128)
        for override in overrides:
            apply_override(config, override)
        check_config(config)
    if args.no_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    profiled = 0 if args.profile is None else min(args.steps, PROFILED_STEPS)
    result = bench(config, args.steps, args.warmup, args.documents, args.padding, profiled)
    if args.config and not args.device_only:
        result["input_tokens_per_second"] = measure_input(config)
    profile = result.pop("profile", None)
    if isinstance(args.profile, Path):
        what = args.shape or Path(args.config.partition(":")[0]).stem
        draw(profile, args.profile, f"{what}, batch {result['batch_size']} x {result['sequence_length']}, "
             f"{result['compute_dtype']} on {result['device']}")  # fmt: skip
    if args.json:
        print_json(result | ({"profile": profile_json(profile)} if profile else {}))
        return 0
    print(describe(result))
    if profile:
        print(f"\n{align(profile_table(profile, result['measured_flops_per_second']))}\n")
        print(align(slowest_table(profile)))
    return 0


def describe(result: dict[str, Any]) -> str:
    """Returns the result as text."""
    padding, memory, step_bytes = result["padding"], result["peak_bytes"], result["step_bytes"]
    lines = [
        f"{result['tokens_per_second']:,.0f} tokens/s"
        + (f" ({result['tokens_per_second_without_padding']:,.0f} without padding)" if padding else "")
        + f", {result['step_seconds']:.3f} s per step, median of {result['steps']} "
        f"(interquartile range {result['spread']:.0%}), {result['compute_dtype']} on {result['device']}",
        f"{result['model_flops_per_second'] / 1e9:,.0f} GFLOP/s, {result['mfu']:.1%} of {result['peak_source']}, "
        f"{result['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s",
    ]
    if result["mfu_datasheet"]:
        lines.append(f"{result['mfu_measured']:.1%} of the largest square product's rate here, "
                     f"{result['measured_flops_per_second'] / 1e9:,.0f} GFLOP/s")  # fmt: skip
    lines.append(
        f"{result['parameters']:,} parameters"
        + (f", {memory / 2**20:,.0f} MiB at peak" if memory else "")
        + (f", {step_bytes / 2**20:,.0f} of them for the step's arrays" if step_bytes and memory else "")
        + f"; compiled in {result['compile_seconds']:.1f} s"
        + (" using the cache of an earlier run" if result["compiled_from_cache"] else "")
    )
    if "input_tokens_per_second" in result:
        lines.append(f"{result['input_tokens_per_second'] / 1e6:,.0f} million tokens/s from disk")
    return "\n".join(lines)


def profile_json(profile: Profile) -> dict[str, Any]:
    """Returns a profile as JSON: seconds per step, fractions, and FLOP/s of matrix products."""
    kinds = {
        kind: {
            "seconds": time.seconds,
            "share": time.seconds / profile.step_seconds,
            "product_seconds": time.product_seconds,
            "product_flops": time.flops,
            "product_flops_per_second": time.flops / time.product_seconds if time.product_seconds else None,
        }
        for kind, time in profile.kinds.items()
    }
    names = ("name", "kind", "seconds", "shape", "scope")
    slowest = [dict(zip(names, kernel, strict=True)) for kernel in profile.slowest]
    return {
        "step_seconds": profile.step_seconds, "no_kernel_seconds": profile.uncovered, "kinds": kinds, "slowest": slowest
    }  # fmt: skip
