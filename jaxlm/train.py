"""The one training loop: step, log, evaluate, save; stop on NaN, on a signal, or when the run is done."""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxlm.config import Phase, config_to_dict, load_config, phase_number, predicted_share, split_overrides
from jaxlm.data.rows import train_batches
from jaxlm.errors import UserError
from jaxlm.evaluation.held_out import before_and_after, describe
from jaxlm.init_from import start_settings
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives import masked_lm
from jaxlm.objectives.masking import Masking, mask_tokens, next_tokens, prediction_slots
from jaxlm.optimizer import optimizers
from jaxlm.optimizer.schedules import make_schedule
from jaxlm.run import Run, locked, run_seeds, set_up
from jaxlm.runtime import distributed, hardware, memory, sharding
from jaxlm.runtime.checkpoint import Checkpoints, NonFinite, params_sha256
from jaxlm.runtime.compiling import compiler_options
from jaxlm.runtime.run_log import RunLog, read_metrics

MASKS, DROPOUT = 0, 1  # what randomness is for, folded into the root key first
TIME_UNITS = 1000.0  # a time budget's schedule counts in thousandths of it


def phase_slots(config: Any, phase: Phase) -> int:
    """Returns how many predictions a row of a phase has room for."""
    rate = max(predicted_share(phase), config.masking.final_rate or 0)
    return prediction_slots(config.masking.scheme, rate, phase.sequence_length)


def make_train_step(
    config: Any,
    phase: Phase,
    encoder: EncoderConfig,
    execution: Execution,
    masking: Masking,
    update: optax.GradientTransformation,
    total: float,
) -> Callable:
    """Returns (state, batch, step, done, mask_rate) -> (state, metrics) for one phase of a run; pure, not yet jitted.

    state is {"params", "opt_state"}; batch the global batch: int32 tokens and segment_ids, bool word_starts [B, L];
    step the updates done so far (int32); done the same in the schedule's unit (float32). Masks and dropout of row b
    depend on (mask seed, step, b) only, whatever the mesh or the micro-batches. total is the schedule's length.
    """
    model = MaskedLM(dataclasses.replace(encoder, rotary_base=phase.rotary_base), execution)
    schedule = make_schedule(config.schedule, total)
    accumulate, logits_bytes = phase.accumulate, hardware.logits_bytes(config.train.logits_megabytes)
    causal, slots = phase.objective == "causal", phase_slots(config, phase)
    mask_seed = run_seeds(config)["mask"]
    dropping = encoder.dropout > 0 or encoder.attention_dropout > 0

    def train_step(state: dict, batch: dict, step: Array, done: Array, mask_rate: Array) -> tuple[dict, dict]:
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        row = jnp.arange(tokens.shape[0])
        frozen = optimizers.frozen_mask(config.optimizer, state["params"])
        root = jax.random.key(mask_seed)
        with jax.named_scope("masking"):  # the scopes are what jaxlm/profile.py tells kernels apart by
            mask_keys, dropout_keys = (
                jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.fold_in(root, use), step), row)
                for use in (MASKS, DROPOUT)
            )
            if causal:
                masked = next_tokens(tokens, segment_ids, masking)
            else:
                masked = mask_tokens(mask_keys, tokens, segment_ids, batch["word_starts"], mask_rate, slots, masking)
            seeds = jax.vmap(lambda key: jax.random.bits(key, (2,)))(dropout_keys) if dropping else None
            # One mean over the whole global batch: what is minimised is the sum over all its predictions' number.
            predictions = jnp.maximum(masked.weights.sum(), 1)

        def share_of_loss(params: dict, rows: Any) -> tuple[Array, masked_lm.PredictionSums]:
            masked, segment_ids, seeds = rows
            params = optimizers.stop_frozen_gradients(frozen, params)
            with jax.named_scope("loss"):
                sums = masked_lm.masked_lm(model, params, masked, segment_ids, seeds, logits_bytes, causal)
            return sums.loss / predictions, sums

        gradient = jax.grad(share_of_loss, has_aux=True)
        rows = (masked, segment_ids, seeds)
        if accumulate == 1:
            grads, sums = gradient(state["params"], rows)
        else:
            # Row b goes to micro-batch b % accumulate, so that a batch split over devices stays where it is.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)
            first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, state["params"], rows))
            add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(state["params"], part)), None)  # noqa: E731
            (grads, sums), _ = lax.scan(add, first, parts)

        with jax.named_scope("optimizer"):
            updates, opt_state = update.update(grads, state["opt_state"], state["params"])
            rate = phase.learning_rate * schedule(done)
            params = jax.tree.map(lambda p, u: p if u is None else p + rate * u, state["params"], updates)
            gradient_norm = optax.global_norm(grads)
        ordinary = jnp.isin(tokens, jnp.asarray(masking.special_ids), invert=True) & (segment_ids > 0)
        metrics = {
            "loss": masked_lm.mean_loss(sums),
            "accuracy": sums.correct / jnp.maximum(sums.predictions, 1),
            "gradient_norm": gradient_norm,
            "learning_rate": rate,
            "masked_share": sums.predictions / jnp.maximum(ordinary.sum(), 1),
            "dropped_words": masked.dropped_words.sum(),
            "padding": (segment_ids == 0).sum(),
        }
        return {"params": params, "opt_state": opt_state}, metrics

    return train_step


def compile_step(run: Run, number: int, *example: Any) -> Callable:
    """Returns the compiled step of phase `number` for arguments like `example`; it reuses the old state's memory.

    Beside state and metrics it returns what the processes voted, where there are several.
    """
    total = TIME_UNITS if run.total_steps is None else run.total_steps
    step = make_train_step(run.config, run.phases[number], run.encoder, run.execution, run.masking, run.update, total)
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state)
    step = run.votes.counted(step)
    lowered = jax.jit(step, donate_argnums=0, out_shardings=(places, None, None)).lower(*example)
    return lowered.compile(compiler_options(jax.default_backend()))


def train(config: Any, workdir: Path) -> dict[str, Any]:
    """Trains what the config says in a work directory, or goes on where it stopped. Returns the final results.

    Raises UserError for what the user can mend, with the newest whole checkpoint kept.
    """
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(locked(workdir))
        run = set_up(config, workdir)
        config = run.config

        # 1. Resume from the newest whole checkpoint of this work directory, or begin with fresh weights.
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best)
        cleanup.enter_context(contextlib.closing(checkpoints))
        saved = checkpoints.restore(run.abstract_state)
        if saved and saved.metadata["data"] != run.prepared.fingerprint:
            raise UserError(f"{workdir} was trained on other data; bring them back, or begin in a new --workdir")
        step = start = saved.step if saved else 0
        clock = _Clock(config.train.minutes, run.total_steps, saved.metadata["elapsed_seconds"] if saved else 0.0)
        state = saved.state if saved else run.fresh_state()
        log = cleanup.enter_context(RunLog(
            workdir, run.total_steps, tensorboard=config.logging.tensorboard, curve=config.logging.curve,
            first_step=start, primary=jax.process_index() == 0,
        ))  # fmt: skip
        _announce(run, log, start, clock)
        if config.model.init_from and not saved:
            run.evaluate(state["params"], log, 0)  # what the model knew before, to compare at the end

        # 2. The loop. What an update does depends on the config and on how many were done before it.
        stopped = cleanup.enter_context(distributed.stop_signals())
        share = sharding.local_parts(run.mesh)
        batches = train_batches(run.rows, start, clock.last_step, *share, prefetch=config.data.prefetch)
        cleanup.enter_context(contextlib.closing(batches))
        meter, compiled, held_out = _Meter(run), dict[int, Callable](), dict[int, float | None]()
        metrics: dict[str, Array] | None = None
        voted: Array | None = None
        over, stopping = clock.is_over(step), False
        while not over and not stopping:
            number, (done, progress) = phase_number(run.phases, step), clock.read(step)
            rate = run.mask_rate(number, progress)
            begin = time.monotonic()
            votes = run.votes.cast(clock.elapsed, bool(stopped))
            inputs = (state, run.put(next(batches)), np.int32(step), np.float32(done), np.float32(rate), *votes)
            if number not in compiled:
                compiled[number] = compile_step(run, number, *inputs)
                meter.skip(time.monotonic() - begin)
            before, heard = metrics, voted
            state, metrics, voted = compiled[number](*inputs)
            step += 1
            meter.add(run.phases[number], rate, metrics)
            _stop_on_nan(before, step - 1, checkpoints)  # one update is always under way: look at the one before it

            stopping = clock.hear(heard) if votes else bool(stopped)
            over = clock.is_over(step)  # asked once a step: a save that outlasts a time budget must not be the last
            evaluating = _due(config.evaluation.every, step) and not over
            saving = _saves(config.checkpoint.every, step) and not over
            if step % config.logging.every == 0:
                log.train(step, meter.read() | {"progress": progress})
            if evaluating or saving:
                _stop_on_nan(metrics, step, checkpoints)
                paused = time.monotonic()
                if evaluating:
                    held_out[step] = _score(run.evaluate(state["params"], log, step))
                if saving:
                    _save(run, checkpoints, step, state, clock, held_out.get(step))
                    if config.checkpoint.every == 1:  # it has no half
                        checkpoints.wait()
                    log.event("checkpoint", step=step)
                meter.skip(time.monotonic() - paused)
            if evaluating or saving or (step - start).bit_count() == 1:
                memory.give_back()  # also after 1, 2, 4, ... updates: most of what no step uses arises early
        _stop_on_nan(metrics, step, checkpoints)
        if meter.metrics:
            log.train(step, meter.read() | {"progress": clock.read(step)[1]})

        # 3. Stopped by a signal: save and say how to go on. Or done: the last evaluation, checkpoint and checksum.
        if stopping and not over:
            _save(run, checkpoints, step, state, clock, None)
            checkpoints.wait()
            by = stopped[0] if jax.process_count() == 1 else "a signal to one of the processes"
            raise UserError(f"stopped by {by}; step {step} is saved, and the same command goes on from there")
        clock.stop()
        results = run.evaluate(state["params"], log, step)
        _save(run, checkpoints, step, state, clock, _score(results))
        checkpoints.wait()
        checksum = params_sha256(state["params"])
        log.event("end", step=step, params_sha256=checksum, peak_bytes=hardware.peak_memory_bytes())
        for name, result in results.items():
            log.note(describe(name, result))
        if config.model.init_from and jax.process_index() == 0:
            log.note(before_and_after(read_metrics(workdir), results))
        log.note(f"params sha256 {checksum}")
        return {"step": step, "params_sha256": checksum, "held_out": results}


def _score(results: dict[str, dict[str, float]]) -> float | None:
    """The loss that decides which checkpoint is best: that of the first held-out set."""
    return next((result["loss"] for result in results.values()), None)


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _saves(every: int, step: int) -> bool:
    """Whether a checkpoint begins: at each multiple of `every` and halfway between.

    One is written while training goes on, and the next waits for it; so a kill costs the steps since the last one began
    and those before, two halves.
    """
    return step % every in (0, every // 2)


class _Clock:
    """How far the run is: by updates, or under a time budget by its seconds, those before a resume included."""

    def __init__(self, minutes: float | None, total_steps: int | None, elapsed: float) -> None:
        self.budget, self.total_steps = (minutes or 0) * 60, total_steps
        self.begin = time.monotonic() - elapsed
        self.end: float | None = None
        self.agreed = elapsed if jax.process_count() > 1 else None
        self.last_step = 2**40 if total_steps is None else total_steps

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return (self.end or time.monotonic()) - self.begin

    @property
    def told(self) -> float:
        """Seconds of training by the clock that counts: that of the first process, where there are several."""
        return self.elapsed if self.agreed is None else self.agreed

    def hear(self, voted: Array | None) -> bool:
        """Takes the first process's time from the votes of a step; returns whether a process has to stop."""
        if voted is None:
            return False
        self.agreed, stop = (float(value) for value in np.asarray(voted))
        return bool(stop)

    def is_over(self, step: int) -> bool:
        return self.told >= self.budget if self.budget else step >= self.last_step

    def read(self, step: int) -> tuple[float, float]:
        """Returns the schedule's count, and the share of the run that is done."""
        if self.budget:
            share = min(self.told / self.budget, 1.0)
            return share * TIME_UNITS, share
        return float(step), step / self.last_step

    def stop(self) -> None:
        self.end = time.monotonic()


def _save(run: Run, checkpoints: Checkpoints, step: int, state: dict, clock: _Clock, score: float | None) -> None:
    config = config_to_dict(run.config)
    about = {"elapsed_seconds": clock.elapsed, "data": run.prepared.fingerprint, "config": config}
    try:
        checkpoints.save(step, state, about, score=score)
    except NonFinite as error:
        raise _nan_error(step, checkpoints, str(error)) from error


def _stop_on_nan(metrics: dict[str, Array] | None, step: int, checkpoints: Checkpoints) -> None:
    if metrics is not None and not np.isfinite(float(metrics["loss"])):
        raise _nan_error(step, checkpoints, "the loss is not a number")


def _nan_error(step: int, checkpoints: Checkpoints, what: str) -> UserError:
    checkpoints.wait()
    newest = checkpoints.newest()
    kept = f"the checkpoint of step {newest} is kept" if newest is not None else "there was no checkpoint yet"
    return UserError(f"step {step}: {what}; {kept}; lower optimizer.learning_rate, or lengthen schedule.warmup")


class _Meter:
    """Means of the metrics, and speed, since it was last read."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.peak = hardware.peak_flops(dtype=run.config.train.compute_dtype).flops * run.mesh.size
        self._clear()

    def _clear(self) -> None:
        self.metrics: list[dict[str, Array]] = []
        self.tokens, self.flops, self.last = 0, 0.0, time.monotonic()

    def add(self, phase: Phase, mask_rate: float, metrics: dict[str, Array]) -> None:
        batch, length = phase.batch_size, phase.sequence_length
        predictions = int(predicted_share(phase, mask_rate) * batch * length)
        self.metrics.append(metrics)
        self.tokens += batch * length
        self.flops += training_flops(self.run.encoder, batch, length, predictions)

    def skip(self, seconds: float) -> None:
        """Leaves out time that was spent on other things than training."""
        self.last += seconds

    def read(self) -> dict[str, float]:
        fetched = jax.device_get(self.metrics)
        seconds = max(time.monotonic() - self.last, 1e-9)
        columns = {name: np.array([entry[name] for entry in fetched], float) for name in fetched[0]}
        result = {name: float(values.mean()) for name, values in columns.items()}
        result |= {
            "learning_rate": float(columns["learning_rate"][-1]),
            "dropped_words": float(columns["dropped_words"].sum()),
            "tokens_per_second": self.tokens / seconds,
            "tokens_per_second_without_padding": (self.tokens - float(columns["padding"].sum())) / seconds,
            "mfu": self.flops / seconds / self.peak,
        }
        self._clear()
        return result


def _announce(run: Run, log: RunLog, step: int, clock: _Clock) -> None:
    train, tokens = run.config.train, run.rows.tokens_per_epoch
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state["params"]))
    mesh = "x".join(str(size) for size in run.mesh.shape.values())
    ends = f"{train.minutes:g} minutes" if run.total_steps is None else f"{run.total_steps:,} steps"
    log.event("start", step=step, elapsed_seconds=clock.elapsed, total_steps=run.total_steps, parameters=parameters,
              data=run.prepared.fingerprint, tokenizer=run.prepared.tokenizer.fingerprint, mesh=dict(run.mesh.shape),
              compute_dtype=train.compute_dtype, attention=run.attention, **hardware.describe_machine())  # fmt: skip
    log.note(
        f"{parameters:,} parameters, vocabulary {run.encoder.vocab_size:,}; products in {train.compute_dtype} "
        f"on {mesh} {jax.devices()[0].platform} (data x fsdp x tensor); {tokens:,} tokens an epoch; {ends}"
    )
    log.note(run.attention)
    if clock.is_over(step):
        log.note(f"this run is complete at step {step}: nothing is left to train; train.steps can prolong it")
    elif step:
        log.note(f"resuming after step {step}")


def main(argv: Sequence[str]) -> int:
    """`jaxlm train --config=FILE[:ARG] --workdir=DIR [--config.section.key=VALUE ...]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm train", description="Train a masked language model, or go on where its work directory stopped.",
        epilog="example: jaxlm train --config=configs/mini.py --workdir=runs/mini --config.train.steps=50",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a config file, or a run's config.json")
    parser.add_argument("--workdir", required=True, type=Path, help="where the run is kept; the same one resumes it")
    args = parser.parse_args(rest)
    config = load_config(args.config, overrides, lambda name: start_settings(name, args.workdir))
    with distributed.joined(config.mesh):
        _train_or_explain(config, args.workdir)
    return 0


def _train_or_explain(config: Any, workdir: Path) -> None:
    try:
        train(config, workdir)
    except Exception as error:
        if hardware.out_of_memory(error):
            raise UserError(
                "out of memory: lower train.batch_size, data.sequence_length or train.logits_megabytes, raise "
                "train.accumulate, or set train.rematerialise=dots or full"
            ) from error
        raise
