"""The training loop: step, log, evaluate, save; it stops on NaN, on a signal, or when the run is complete.

It trains whatever the run's objective is: `run.py` assembles the run, `step.py` the step.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jaxlm.config import config_to_dict, phase_number, split_overrides
from jaxlm.data.prefetch import train_batches
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics, before_and_after, selector
from jaxlm.init_from import Start
from jaxlm.run import Run, load_run_config, locked, set_up
from jaxlm.runtime import distributed, hardware, memory, sharding
from jaxlm.runtime.checkpoint import Checkpoints, NonFinite
from jaxlm.runtime.checksums import params_sha256
from jaxlm.runtime.run_log import RunLog, read_metrics
from jaxlm.step import TIME_UNITS


def train(config: Any, workdir: Path, start: Start | None = None) -> dict[str, Any]:
    """Trains what the config describes in a work directory, or resumes it there. Returns the final results.

    `start` is what model.init_from names, if the caller has resolved it. Raises UserError for what the user can fix,
    with the newest whole checkpoint kept.
    """
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(locked(workdir))
        run = set_up(config, workdir, start)
        config, evaluators, selects = run.config, run.evaluators, selector(run.evaluators)

        # 1. Resume from the newest whole checkpoint of this work directory, or begin with fresh weights.
        higher_is_better = bool(selects and selects.higher_is_better)
        checkpoints = Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best, higher_is_better
        )
        cleanup.enter_context(contextlib.closing(checkpoints))
        saved = checkpoints.restore(run.assembly.abstract_state)
        if saved and saved.metadata["data"] != run.data.fingerprint:
            raise UserError(f"{workdir} was trained on other data; restore them, or use a new --workdir")
        step = first_step = saved.step if saved else 0
        clock = _Clock(config.train.minutes, run.total_steps, saved.metadata["elapsed_seconds"] if saved else 0.0)
        state = saved.state if saved else run.fresh_state()
        log = cleanup.enter_context(RunLog(
            workdir, run.total_steps, tensorboard=config.logging.tensorboard, curve=config.logging.curve,
            first_step=step, primary=jax.process_index() == 0,
        ))  # fmt: skip
        _announce(run, log, step, clock)
        if run.start and not saved:
            run.evaluate(evaluators, state["params"], log, 0)  # before training, to compare with the end

        # 2. The loop. What an update does depends on the config and on how many were done before it.
        stopped = cleanup.enter_context(distributed.stop_signals())
        parts = sharding.local_parts(run.assembly.mesh)
        batches = train_batches(run.rows, step, clock.last_step, *parts, prefetch=config.data.prefetch)
        cleanup.enter_context(contextlib.closing(batches))
        meter, compiled = _Meter(run), dict[tuple, Callable]()
        metrics: dict[str, Array] | None = None
        agreed: Array | None = None
        over, stopping = clock.is_over(step), False
        while not over and not stopping:
            number, (done, progress) = phase_number(run.assembly.phases, step), clock.read(step)
            knobs = run.assembly.objectives[number].knobs(progress)
            begin = time.monotonic()
            votes = run.votes.cast(clock.elapsed, bool(stopped))
            batch = run.shard_batch(next(batches))
            scalars = np.int32(step), np.float32(done), {name: np.float32(knob) for name, knob in knobs.items()}
            program = (number, *(array.shape for array in batch.values()))
            if program not in compiled:
                compiled[program] = compile_step(run, number, state, batch, *scalars, *votes)
                meter.skip(time.monotonic() - begin)
            previous_metrics, previous_agreed = metrics, agreed
            state, (metrics, agreed) = compiled[program](state, batch, *scalars, *votes)
            step += 1
            meter.add(number, batch["tokens"].shape, knobs, metrics)
            _stop_on_nan(previous_metrics, step - 1, checkpoints)  # one update is always under way: check the last one

            stopping = clock.agree(previous_agreed) if votes else bool(stopped)
            over = clock.is_over(step)  # asked once per step: a save that outlasts a time budget must not be the last
            due = [evaluator for evaluator in evaluators if _due(evaluator.every, step) and not over]
            saving = _saves(config.checkpoint.every, step) and not over
            if step % config.logging.every == 0:
                log.train(step, meter.read() | {"progress": progress})
            if due or saving:
                _stop_on_nan(metrics, step, checkpoints)
                paused = time.monotonic()
                results = run.evaluate(due, state["params"], log, step)
                if saving:
                    _save(run, checkpoints, step, state, clock, results)
                    if config.checkpoint.every == 1:  # no save may be under way when the next one begins
                        checkpoints.wait()
                    log.event("checkpoint", step=step)
                meter.skip(time.monotonic() - paused)
            if due or saving or (step - first_step).bit_count() == 1:
                memory.give_back()  # also after 1, 2, 4, ... updates: most unused memory appears early
        _stop_on_nan(metrics, step, checkpoints)
        if meter.metrics:
            log.train(step, meter.read() | {"progress": clock.read(step)[1]})

        # 3. Stopped by a signal: save, and say how to resume. Complete: the last evaluation, checkpoint and checksum.
        if stopping and not over:
            _save(run, checkpoints, step, state, clock, {})
            checkpoints.wait()
            by = stopped[0] if jax.process_count() == 1 else "a signal to one of the processes"
            raise UserError(f"stopped by {by}; step {step} is saved, and the same command resumes from it")
        clock.stop()
        results = run.evaluate(evaluators, state["params"], log, step)
        _save(run, checkpoints, step, state, clock, results)
        checkpoints.wait()
        checksum = params_sha256(state["params"])
        log.event("end", step=step, params_sha256=checksum, peak_bytes=hardware.peak_memory_bytes())
        for evaluator in evaluators:
            log.note(evaluator.describe(evaluator.name, results[evaluator.name]))
        if run.start and jax.process_index() == 0:
            events = [event for event in read_metrics(workdir) if event["kind"] == "evaluation" and event["step"] == 0]
            log.note(before_and_after({event["name"]: event for event in events}, results))
        log.note(f"params sha256 {checksum}")
        return {"step": step, "params_sha256": checksum, "evaluation": results}


def compile_step(run: Run, number: int, *arguments: Any) -> Callable:
    """Returns the compiled step of phase `number`: (*arguments) -> (state, (metrics, what the processes agreed on))."""
    step = run.votes.counted(run.assembly.train_step(number, run.schedule_length))
    return run.assembly.compile(run.assembly.lower(step, *arguments))


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _saves(every: int, step: int) -> bool:
    """Returns whether a checkpoint begins: at each multiple of `every` and halfway between.

    One is written while training goes on, and the next waits for it. So a kill costs at most the steps since the last
    one began and those since the one before it, two halves.
    """
    return step % every in (0, every // 2)


class _Clock:
    """How far the run is: by updates, or under a time budget by its seconds, those before a resume included."""

    def __init__(self, minutes: float | None, total_steps: int | None, elapsed: float) -> None:
        self.budget, self.total_steps = (minutes or 0) * 60, total_steps
        self.begin = time.monotonic() - elapsed
        self.end: float | None = None
        self._agreed = elapsed if jax.process_count() > 1 else None
        self.last_step = 2**40 if total_steps is None else total_steps

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return (self.end or time.monotonic()) - self.begin

    @property
    def agreed_elapsed(self) -> float:
        """Seconds of training by the clock that all processes use: that of the first one, if there are several."""
        return self.elapsed if self._agreed is None else self._agreed

    def agree(self, agreed: Array | None) -> bool:
        """Takes over the first process's time from the votes of a step; returns whether a process has to stop."""
        if agreed is None:
            return False
        self._agreed, stop = (float(value) for value in np.asarray(agreed))
        return bool(stop)

    def is_over(self, step: int) -> bool:
        return self.agreed_elapsed >= self.budget if self.budget else step >= self.last_step

    def read(self, step: int) -> tuple[float, float]:
        """Returns the schedule's count and the completed fraction of the run."""
        if self.budget:
            fraction = min(self.agreed_elapsed / self.budget, 1.0)
            return fraction * TIME_UNITS, fraction
        return float(step), step / self.last_step

    def stop(self) -> None:
        self.end = time.monotonic()


def _save(
    run: Run, checkpoints: Checkpoints, step: int, state: dict, clock: _Clock, results: dict[str, Metrics]
) -> None:
    """Saves a checkpoint, with the metric that chooses the best one if it has been evaluated at this step."""
    selects = selector(run.evaluators)
    score = results[selects.name][selects.selects] if selects and selects.name in results else None
    metadata = {
        "elapsed_seconds": clock.elapsed, "data": run.data.fingerprint, "config": config_to_dict(run.config)
    }  # fmt: skip
    try:
        checkpoints.save(step, state, metadata, score=score)
    except NonFinite as error:
        raise _nan_error(step, checkpoints, str(error)) from error


def _stop_on_nan(metrics: dict[str, Array] | None, step: int, checkpoints: Checkpoints) -> None:
    if metrics is not None and not np.isfinite(float(metrics["loss"])):
        raise _nan_error(step, checkpoints, "the loss is not a number")


def _nan_error(step: int, checkpoints: Checkpoints, what: str) -> UserError:
    checkpoints.wait()
    newest = checkpoints.newest()
    kept = f"the checkpoint of step {newest} is kept" if newest is not None else "no checkpoint was saved before"
    return UserError(f"step {step}: {what}; {kept}; lower optimizer.learning_rate, or lengthen schedule.warmup")


class _Meter:
    """The metrics and the speed since they were last read."""

    def __init__(self, run: Run) -> None:
        self.objectives = run.assembly.objectives
        peak = hardware.peak_flops(dtype=run.config.train.compute_dtype)
        self.peak = peak.flops * run.assembly.mesh.size
        self.counted = frozenset[str]().union(*(objective.counted for objective in self.objectives))
        self._clear()

    def _clear(self) -> None:
        self.metrics: list[dict[str, Array]] = []
        self.tokens, self.flops, self.last = 0, 0.0, time.monotonic()

    def add(self, number: int, shape: tuple[int, ...], knobs: dict[str, float], metrics: dict[str, Array]) -> None:
        """Adds a step of phase `number` on a batch of this shape, [B, L]."""
        batch_size, length = shape
        self.metrics.append(metrics)
        self.tokens += batch_size * length
        self.flops += self.objectives[number].flops(batch_size, length, batch_size * length, knobs)

    def skip(self, seconds: float) -> None:
        """Excludes time that was not spent on training."""
        self.last += seconds

    def read(self) -> dict[str, float]:
        """Returns means of the metrics (sums of the counted ones), tokens per second and MFU, and starts again."""
        fetched = jax.device_get(self.metrics)
        seconds = max(time.monotonic() - self.last, 1e-9)
        # Phases may report different metrics: each is averaged over the steps that have it.
        columns: dict[str, list[float]] = {}
        for entry in fetched:
            for name, value in entry.items():
                columns.setdefault(name, []).append(float(value))
        padding = sum(columns.pop("padding"))
        result = {name: float(np.mean(np.array(values))) for name, values in columns.items()}
        result |= {name: float(np.sum(columns[name])) for name in self.counted & columns.keys()}
        result |= {
            "learning_rate": columns["learning_rate"][-1],
            "tokens_per_second": self.tokens / seconds,
            "tokens_per_second_without_padding": (self.tokens - padding) / seconds,
            "padding": padding / len(fetched),
            "mfu": self.flops / seconds / self.peak,
        }
        self._clear()
        return result


def _announce(run: Run, log: RunLog, step: int, clock: _Clock) -> None:
    train, assembly, mesh = run.config.train, run.assembly, run.assembly.mesh
    parameters = sum(leaf.size for leaf in jax.tree.leaves(assembly.abstract_state["params"]))
    sizes = "x".join(str(size) for size in mesh.shape.values())
    ends = f"{train.minutes:g} minutes" if run.total_steps is None else f"{run.total_steps:,} steps"
    log.event("start", step=step, elapsed_seconds=clock.elapsed, total_steps=run.total_steps, parameters=parameters,
              data=run.data.fingerprint, tokenizer=run.data.tokenizer.fingerprint, mesh=dict(mesh.shape),
              compute_dtype=train.compute_dtype, attention=assembly.attention,
              **hardware.describe_machine())  # fmt: skip
    log.note(
        f"{parameters:,} parameters, vocabulary {assembly.encoder.vocab_size:,}; products in {train.compute_dtype} "
        f"on {sizes} {jax.devices()[0].platform} (data x fsdp x tensor); {run.rows.describe()}; {ends}"
    )
    log.note(assembly.attention)
    if clock.is_over(step):
        log.note(f"this run is complete at step {step}; to extend it, raise train.steps")
    elif step:
        log.note(f"resuming after step {step}")


def main(argv: Sequence[str]) -> int:
    """`jaxlm train --config=CONFIG[:ARG] --workdir=DIR [--config.section.key=VALUE ...]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm train", description="Train a model, or resume the run of a work directory.",
        epilog="example: jaxlm train --config=mini --workdir=runs/mini --config.train.steps=50",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="CONFIG[:ARG]", help="a recipe, a config file, or a "
                        "run's config.json")  # fmt: skip
    parser.add_argument(
        "--workdir", required=True, type=Path, metavar="DIR", help="directory of the run; the same one resumes it"
    )
    args = parser.parse_args(rest)
    train_from(args.config, args.workdir, overrides)
    return 0


def train_from(config: ConfigDict | str | Path, workdir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains what a config, a config file or a recipe describes. See `jaxlm.train`."""
    if not str(workdir):
        raise UserError("the work directory has no name; pass the directory of the run")
    if isinstance(overrides, str):
        raise UserError('overrides must be a list such as ["train.steps=100"], not a str')
    workdir = Path(workdir)
    resolved, start = load_run_config(config, overrides, workdir)
    with distributed.joined(resolved.mesh):
        try:
            return train(resolved, workdir, start)
        except Exception as error:
            if hardware.out_of_memory(error):
                raise UserError(
                    "out of memory: lower train.batch_size, data.sequence_length or train.logits_megabytes, raise "
                    "train.accumulate, or set train.rematerialise=dots or full"
                ) from error
            raise
