"""How fast the training step is: tokens per second, share of peak, memory, time to compile, input rate."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxlm import config as settings
from jaxlm import hardware, optimizer, sharding
from jaxlm.errors import UserError
from jaxlm.masking import make_masking, prediction_slots
from jaxlm.model.config import choose_execution, compiler_options, encoder_config, training_flops
from jaxlm.run import initial_state
from jaxlm.train import make_train_step

SPECIAL_IDS = (0, 1, 2, 3, 4)  # of the synthetic vocabulary; the last is the mask


def bench(config: Any, steps: int = 10, warmup: int = 2) -> dict[str, Any]:
    """Times the training step of a config's last phase, the very step that `jaxlm train` runs.

    The rows are random ordinary tokens that lie on the device: the accelerator alone. Seconds are medians of single
    steps, from call to finished state; `spread` is the middle half of them over the median. FLOPs are those of
    `training_flops`; mfu divides by the datasheet's peak, or on CPUs by the largest square product timed in this run.
    """
    phase = settings.phases_of(config)[-1]
    batch_size, length = phase["batch_size"], phase["sequence_length"]
    encoder = encoder_config(config.model, config.model.vocab_size or config.tokenizer.vocab_size)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, batch_size, phase["accumulate"])
    device = mesh.devices.flat[0]
    dtype = config.train.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if hardware.fast_bfloat16() else "float32"
    execution = choose_execution(
        dtype, device.platform, mesh.size, config.train.rematerialise, sharding.batch_sharding(mesh)
    )
    masking = make_masking(config.masking, encoder.vocab_size, SPECIAL_IDS[-1], SPECIAL_IDS)
    update = optimizer.make_optimizer(config.optimizer, jax.eval_shape(lambda: initial_params(encoder)))
    shapes = jax.eval_shape(lambda: initial_state(encoder, update, 0))
    places = sharding.state_shardings(mesh, shapes)
    state = jax.jit(lambda: initial_state(encoder, update, 0), out_shardings=places)()

    rng = np.random.default_rng(0)
    tokens = rng.integers(len(SPECIAL_IDS), encoder.vocab_size, (batch_size, length), np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "word_starts": rng.random(tokens.shape) < 0.7}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = make_train_step(config, phase, encoder, execution, masking, update, 1000.0)
    scalars = (np.int32(0), np.float32(1), np.float32(phase["mask_rate"]))
    begin = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0, out_shardings=(places, None)).lower(state, batch, *scalars)
    compiled = lowered.compile(compiler_options(execution, device.platform))
    compile_seconds = time.perf_counter() - begin

    seconds = []
    for number in range(warmup + steps):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch, np.int32(number), *scalars[1:])
        jax.block_until_ready((state, metrics))
        if number >= warmup:
            seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
    predictions = int(phase["mask_rate"] * batch_size * length)
    flops = training_flops(encoder, batch_size, length, predictions)
    peak = hardware.peak_flops(device, dtype)
    return {
        "tokens_per_second": batch_size * length / median,
        "step_seconds": median,
        "spread": (quarters[2] - quarters[0]) / median,
        "model_flops_per_second": flops / median,
        "mfu": flops / median / (peak.flops * mesh.size),
        "peak_flops_per_second": peak.flops * mesh.size,
        "peak_source": peak.source,
        "peak_bytes": hardware.peak_memory_bytes(),
        "compile_seconds": compile_seconds,
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])),
        "prediction_slots": prediction_slots(masking.scheme, phase["mask_rate"], length) * batch_size,
        "batch_size": batch_size,
        "sequence_length": length,
        "compute_dtype": dtype,
        "device": f"{mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
    }


def initial_params(encoder: Any) -> dict:
    """Returns the parameters alone, for their shapes."""
    return initial_state(encoder, optimizer.optax.identity(), 0)["params"]


def measure_input(config: Any) -> float:
    """Returns the tokens per second that the config's data give from disk, without a model. Raises UserError."""
    from jaxlm.data.pipeline import Phase, TrainRows, measure_input_rate
    from jaxlm.data.prepare import prepare

    prepared = prepare(config)
    phase = settings.phases_of(config)[-1]
    shape = Phase(2**40, phase["sequence_length"], phase["batch_size"])
    rows = TrainRows(
        prepared.train, list(config.data.weights) or None, [shape], 0,
        config.data.prepend_begin, prepared.tokenizer.begin_id, prepared.tokenizer.pad_id,
    )  # fmt: skip
    return measure_input_rate(rows, max(20, 2_000_000 // (shape.batch_size * shape.sequence_length)))


def shape_config(shape: str, vocab: int, batch: int, length: int) -> Any:
    """Returns a BERT of `LAYERSxWIDTH` with dropout 0.1, the work that peers are compared on. Raises UserError."""
    try:
        layers, width = (int(part) for part in shape.lower().split("x"))
    except ValueError as error:
        raise UserError(f"--shape={shape}: LAYERSxWIDTH is meant, such as 4x256") from error
    from jaxlm.model.config import PRESETS

    config = settings.default_config()
    config.model.update(PRESETS["bert_base"])
    config.model.update(layers=layers, width=width, heads=max(1, width // 64), feed_forward_width=4 * width)
    config.model.update(vocab_size=vocab, max_positions=max(512, length))
    config.train.batch_size, config.data.sequence_length = batch, length
    config.optimizer.learning_rate = 1e-4
    return config


def main(argv: Sequence[str]) -> int:
    """`jaxlm bench --config=FILE | --shape=4x256 [--device-only] [--json]`."""
    overrides, rest = settings.split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm bench", description="Time the training step.",
        epilog="example: jaxlm bench --shape=4x256 --vocab=30522 --batch=32 --length=128 --device-only",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a recipe; its last phase is timed")
    parser.add_argument("--shape", metavar="LAYERSxWIDTH", help="instead of a recipe: a BERT of this shape")
    parser.add_argument("--vocab", type=int, default=30_522, help="with --shape: entries of the vocabulary")
    parser.add_argument("--batch", type=int, default=32, help="with --shape: rows in a batch")
    parser.add_argument("--length", type=int, default=128, help="with --shape: tokens in a row")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after two that are not")
    parser.add_argument("--device-only", action="store_true", help="synthetic tokens only; reads no data")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(rest)
    if bool(args.config) == bool(args.shape):
        raise UserError("give either --config=FILE or --shape=LAYERSxWIDTH")
    if args.steps < 1:
        raise UserError(f"--steps={args.steps}: at least 1 is needed")
    if args.config:
        config = settings.load_config(args.config, overrides)
    else:
        config = shape_config(args.shape, args.vocab, args.batch, args.length)
        for override in overrides:
            settings.apply_override(config, override)
        settings.check_config(config)
    result = bench(config, args.steps)
    if args.config and not args.device_only:
        result["input_tokens_per_second"] = measure_input(config)
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['tokens_per_second']:,.0f} tokens/s, {result['step_seconds']:.3f} s a step "
          f"(middle half within {result['spread']:.0%}), {result['compute_dtype']} on {result['device']}")  # fmt: skip
    print(f"{result['model_flops_per_second'] / 1e9:,.0f} GFLOP/s, {result['mfu']:.1%} of {result['peak_source']}")
    memory = result["peak_bytes"]
    print(f"{result['parameters']:,} parameters, " + (f"{memory / 2**20:,.0f} MiB at most, " if memory else "")
          + f"compiled in {result['compile_seconds']:.1f} s")  # fmt: skip
    if "input_tokens_per_second" in result:
        print(f"{result['input_tokens_per_second'] / 1e6:,.0f} million tokens/s from disk")
    return 0
