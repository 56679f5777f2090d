"""How fast the training step is: tokens per second, share of peak, memory, time to compile, input rate."""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxlm.config import (
    Phase,
    apply_override,
    check_config,
    default_config,
    load_config,
    phases_of,
    predicted_share,
    split_overrides,
)
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import choose_execution
from jaxlm.model.flops import training_flops
from jaxlm.model.kernels.dispatch import choose_attention
from jaxlm.objectives.masking import make_masking
from jaxlm.optimizer import optimizers
from jaxlm.performance.profile import Profile, align, draw, profile_steps, profile_table, slowest_table
from jaxlm.run import initial_state
from jaxlm.runtime import hardware, sharding
from jaxlm.runtime.compiling import compiler_options, initial_options
from jaxlm.train import make_train_step, phase_slots

PAD_ID, SPECIAL_IDS = 0, (0, 1, 2, 3, 4)  # of the synthetic vocabulary; the last is the mask
MEASURING_SECONDS = 3.0  # for the peak, before the steps and after them
PROFILED_STEPS = 5
DISPATCHED = 5  # steps that an accelerator is given at a time


def bench(
    config: Any, steps: int = 10, warmup: int = 2, documents: int = 1, padding: float = 0.0, profiled: int = 0
) -> dict[str, Any]:
    """Times the training step of a config's last phase, the very step that `jaxlm train` runs.

    The rows are random ordinary tokens that lie on the device: the accelerator alone. Each row holds `documents`
    documents of one length and ends with a share `padding` of padding. Seconds are medians of single steps, from call
    to finished state, on accelerators of DISPATCHED steps at a time; `spread` is the middle half of them over the
    median. FLOPs are those of `training_flops`, at every token of a row, padding too, and in attention over whole rows.
    `mfu_measured` divides by the rate of the largest square product that was timed before and after the steps,
    `mfu_datasheet` by the maker's figure where it is known; `mfu` is the latter where there is one. `profiled` further
    steps are profiled: "profile" is their Profile.
    """
    phase = phases_of(config)[-1]
    batch_size, length = phase.batch_size, phase.sequence_length
    encoder = encoder_config(config.model, config.model.vocab_size or config.tokenizer.vocab_size)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, batch_size, phase.accumulate)
    device = mesh.devices.flat[0]
    dtype = config.train.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if hardware.fast_bfloat16() else "float32"
    batch = synthetic_batch(encoder.vocab_size, batch_size, length, documents, padding)
    real = int((batch["segment_ids"] > 0).sum())
    rates = [hardware.measure_product(device, dtype, MEASURING_SECONDS)]

    kernel, _ = choose_attention(config.train.attention, encoder, dtype, device.platform, mesh)
    execution = choose_execution(
        dtype, device.platform, mesh.size, config.train.rematerialise, kernel, sharding.batch_sharding(mesh)
    )
    masking = make_masking(config.masking, encoder.vocab_size, SPECIAL_IDS[-1], SPECIAL_IDS)
    update = optimizers.make_optimizer(config.optimizer, jax.eval_shape(lambda: initial_params(encoder)), dtype)
    shapes = jax.eval_shape(lambda: initial_state(encoder, update, 0))
    places = sharding.state_shardings(mesh, shapes)
    initial = partial(initial_state, encoder, update, 0)
    state = jax.jit(initial, out_shardings=places, compiler_options=initial_options(device.platform))()
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = make_train_step(config, phase, encoder, execution, masking, update, 1000.0)
    scalars = (np.int32(0), np.float32(1), np.float32(phase.mask_rate))
    with _cache_hits() as hits, _scopes_in_key(profiled > 0):
        begin = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(places, None)).lower(state, batch, *scalars)
        trace_seconds = time.perf_counter() - begin
        options = compiler_options(device.platform)
        if profiled and device.platform == "gpu":
            options["xla_gpu_enable_command_buffer"] = ""  # a profile sees no kernels within one
        compiled = lowered.compile(options)
        compile_seconds = time.perf_counter() - begin

    in_turn = 1 if device.platform == "cpu" else DISPATCHED  # a run does not wait for each step either

    def run_steps(count: int) -> list[float]:
        nonlocal state
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            for number in range(in_turn):
                state, metrics = compiled(state, batch, np.int32(number), *scalars[1:])
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
    flops = training_flops(encoder, batch_size, length, int(predicted_share(phase) * real))
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
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])),
        "prediction_slots": phase_slots(config, phase) * batch_size,
        "batch_size": batch_size,
        "sequence_length": length,
        "documents_per_row": documents,
        "padding": 1 - real / (batch_size * length),
        "compute_dtype": dtype,
        "attention": kernel,
        "device": f"{mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
        "machine": hardware.describe_machine(),
    }
    return result | ({"profile": profile} if profile else {})


def synthetic_batch(vocab: int, rows: int, length: int, documents: int, padding: float) -> dict[str, np.ndarray]:
    """Returns a batch of random ordinary tokens [rows, length], each row of so many documents and then padding.

    Raises UserError for documents that do not fit.
    """
    real = length - round(padding * length)
    if not 0 <= padding < 1 or not 1 <= documents <= real:
        raise UserError(
            f"--documents={documents} and --padding={padding:g} do not go into a row of {length} tokens: padding is "
            "a share from 0 to below 1, and each document needs a token"
        )
    rng = np.random.default_rng(0)
    tokens = rng.integers(len(SPECIAL_IDS), vocab, (rows, length), np.int32)
    segments = np.zeros(length, np.int32)
    segments[:real] = 1 + np.arange(real) * documents // real
    tokens[:, real:] = PAD_ID
    word_starts = (rng.random(tokens.shape) < 0.7) & (segments > 0)
    return {"tokens": tokens, "segment_ids": np.tile(segments, (rows, 1)), "word_starts": word_starts}


@contextlib.contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """Gathers what the compilation cache gave."""
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
    """Keeps cached programs apart by the scopes in them too: else one may carry those of older code."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, on or before)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _step_bytes(compiled: Any) -> int | None:
    """Returns the memory of one step a device by XLA's own analysis: arguments, results and what is in between."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    alias = analysis.alias_size_in_bytes  # results that take the place of arguments
    between = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - alias
    return int(analysis.argument_size_in_bytes + between)


def initial_params(encoder: Any) -> dict:
    """Returns the parameters alone, for their shapes."""
    return initial_state(encoder, optax.identity(), 0)["params"]


def measure_input(config: Any) -> float:
    """Returns the tokens per second that the config's data give from disk, without a model. Raises UserError."""
    from jaxlm.data.corpus import prepare
    from jaxlm.data.rows import TrainRows, measure_input_rate

    prepared = prepare(config)
    phase = phases_of(config)[-1]
    shape = Phase(2**40, phase.sequence_length, phase.batch_size)
    rows = TrainRows(
        prepared.train, list(config.data.weights) or None, [shape], 0,
        config.data.prepend_begin, prepared.tokenizer.begin_id, prepared.tokenizer.pad_id,
    )  # fmt: skip
    return measure_input_rate(rows, max(20, 2_000_000 // (shape.batch_size * shape.sequence_length)))


def resized(config: Any, batch: int | None, length: int | None) -> Any:
    """Returns the config as one phase, its last, with other rows; --batch leaves accumulation out. Raises UserError."""
    phase = phases_of(config)[-1]
    accumulate = 1 if batch else phase.accumulate
    batch, length = batch or phase.batch_size, length or phase.sequence_length
    config.train.update(phases=({"objective": phase.objective},), batch_size=batch, accumulate=accumulate)
    config.data.sequence_length, config.masking.rate = length, phase.mask_rate
    config.model.rotary_base, config.optimizer.learning_rate = phase.rotary_base, phase.learning_rate
    check_config(config)
    return config


def shape_config(shape: str, vocab: int, batch: int, length: int) -> Any:
    """Returns a BERT of `LAYERSxWIDTH` with dropout 0.1, the work that peers are compared on. Raises UserError."""
    try:
        layers, width = (int(part) for part in shape.lower().split("x"))
    except ValueError as error:
        raise UserError(f"--shape={shape}: LAYERSxWIDTH is meant, such as 4x256") from error
    from jaxlm.model.presets import PRESETS

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
        prog="jaxlm bench", description="Time the training step.", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples: jaxlm bench --shape=4x256 --vocab=30522 --batch=32 --length=128 --profile=step.png\n"
        "          jaxlm bench --config=configs/modernbert_base.py --batch=4 --length=512 --documents=4 --device-only",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a recipe; its last phase is timed")
    parser.add_argument("--shape", metavar="LAYERSxWIDTH", help="instead of a recipe: a BERT of this shape")
    parser.add_argument("--vocab", type=int, default=30_522, help="with --shape: entries of the vocabulary")
    parser.add_argument("--batch", type=int, help="rows in a batch (a recipe's own, or 32), without accumulation")
    parser.add_argument("--length", type=int, help="tokens in a row (a recipe's own, or 128)")
    parser.add_argument(
        "--documents", type=int, default=1, help="documents packed into a row; attention is within each"
    )
    parser.add_argument("--padding", type=float, default=0.0, help="share of each row that is padding")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after --warmup that are not")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--profile",
        nargs="?",
        const="",
        metavar="FIGURE.png",
        help="where the time of further steps goes, by kind of kernel: a table, and a figure",
    )
    parser.add_argument("--no-cache", action="store_true", help="compile even where the compiled step is in the cache")
    parser.add_argument("--device-only", action="store_true", help="synthetic tokens only; reads no data")
    parser.add_argument("--json", action="store_true", help="one JSON object")  # fmt: skip
    args = parser.parse_args(rest)
    if bool(args.config) == bool(args.shape):
        raise UserError("give either --config=FILE or --shape=LAYERSxWIDTH")
    for name, least in (("steps", 1), ("warmup", 0), ("vocab", 8), ("batch", 1), ("length", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name}={value}: at least {least} is needed")
    if args.profile and not Path(args.profile).parent.is_dir():
        raise UserError(f"--profile={args.profile}: there is no directory {Path(args.profile).parent}")
    if args.profile and Path(args.profile).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--profile={args.profile}: a figure is a .png, .svg or .pdf file")
    if args.config:
        config = load_config(args.config, overrides)
        config = resized(config, args.batch, args.length)
    else:
        config = shape_config(args.shape, args.vocab, args.batch or 32, args.length or 128)
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
    if args.profile:
        what = args.shape or Path(args.config.partition(":")[0]).stem
        draw(profile, Path(args.profile), f"{what}, batch {result['batch_size']} x {result['sequence_length']}, "
             f"{result['compute_dtype']} on {result['device']}")  # fmt: skip
    if args.json:
        print(json.dumps(result | ({"profile": profile_json(profile)} if profile else {})))
        return 0
    print(describe(result))
    if profile:
        print(f"\n{align(profile_table(profile, result['measured_flops_per_second']))}\n")
        print(align(slowest_table(profile)))
    return 0


def describe(result: dict[str, Any]) -> str:
    """Returns the lines that people read."""
    padding, memory, step_bytes = result["padding"], result["peak_bytes"], result["step_bytes"]
    lines = [
        f"{result['tokens_per_second']:,.0f} tokens/s"
        + (f" ({result['tokens_per_second_without_padding']:,.0f} without padding)" if padding else "")
        + f", {result['step_seconds']:.3f} s a step, median of {result['steps']} "
        f"(middle half within {result['spread']:.0%}), {result['compute_dtype']} on {result['device']}",
        f"{result['model_flops_per_second'] / 1e9:,.0f} GFLOP/s, {result['mfu']:.1%} of {result['peak_source']}, "
        f"{result['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s",
    ]
    if result["mfu_datasheet"]:
        lines.append(f"{result['mfu_measured']:.1%} of the largest square product's rate here, "
                     f"{result['measured_flops_per_second'] / 1e9:,.0f} GFLOP/s")  # fmt: skip
    lines.append(
        f"{result['parameters']:,} parameters"
        + (f", {memory / 2**20:,.0f} MiB at most" if memory else "")
        + (f", {step_bytes / 2**20:,.0f} of them the step's arrays" if step_bytes and memory else "")
        + f"; compiled in {result['compile_seconds']:.1f} s"
        + (" with the cache of an earlier run" if result["compiled_from_cache"] else "")
    )
    if "input_tokens_per_second" in result:
        lines.append(f"{result['input_tokens_per_second'] / 1e6:,.0f} million tokens/s from disk")
    return "\n".join(lines)


def profile_json(profile: Profile) -> dict[str, Any]:
    """Returns a profile for JSON: seconds a step, shares, and FLOP/s of products."""
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
