"""The training loop: step, log, evaluate, save; it stops on NaN, on a signal, or when the run is complete.

It trains on when nobody reads its output any more, as in `jaxlm train ... | head`: the run's log is in its directory.
It trains whatever the run's objective is: `run.py` assembles the run, `step.py` the step.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jaxlm.announcements import announce, announce_phase, describe_best, describe_jump, remarks
from jaxlm.config import config_to_dict, phase_number, split_overrides
from jaxlm.data.prefetch import train_batches
from jaxlm.errors import NotFinite, UserError
from jaxlm.evaluation.calibration import describe_calibration, write_calibration
from jaxlm.evaluation.evaluator import Evaluator, Metrics, before_and_after, selector
from jaxlm.evaluation.protocol import describe_protocol
from jaxlm.evaluation.task_sets import write_results
from jaxlm.init_from import Start
from jaxlm.run import Run, check_workdir, load_run_config, locked, set_up
from jaxlm.runtime import distributed, hardware, memory, sharding
from jaxlm.runtime.checkpoint import Checkpoints, NonFinite, restore_params
from jaxlm.runtime.checksums import params_sha256
from jaxlm.runtime.clock import Clock
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.run_log import RunLog, read_metrics
from jaxlm.runtime.trackers import check_trackers, open_trackers
from jaxlm.storage import local_path


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
        checkpoints = Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_best,
            higher_is_better=bool(selects and selects.higher_is_better), metric=selects.criterion if selects else "",
        )  # fmt: skip
        cleanup.enter_context(contextlib.closing(checkpoints))
        saved = checkpoints.restore(run.assembly.abstract_state)
        if saved and saved.metadata["data"] != run.data.fingerprint:
            raise UserError(f"{workdir} was trained on other data; restore them, or use a new --workdir")
        step = first_step = saved.step if saved else 0
        elapsed = saved.metadata["elapsed_seconds"] if saved else 0.0
        clock = Clock(config.train.minutes, run.total_steps, elapsed, config.train.count_compilation)
        state = saved.state if saved else run.fresh_state()
        primary = jax.process_index() == 0
        log = cleanup.enter_context(RunLog(
            workdir, run.total_steps, tensorboard=config.logging.tensorboard, curve=config.logging.curve,
            first_step=step, primary=primary,
            trackers=open_trackers(config.logging, workdir, config_to_dict(config)) if primary else {},
        ))  # fmt: skip
        announce(run, log, step, clock)
        if saved and (line := describe_jump(run, saved, clock)):
            log.note(line)
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
        results: dict[str, Metrics] = {}
        evaluated: set[int] = set()  # the phases whose evaluation has been compiled
        over, stopping = clock.is_over(step) or _is_stale(config.evaluation, checkpoints, step), False
        while not over and not stopping:
            number, (done, progress) = phase_number(run.assembly.phases, step), clock.read(step)
            if number != meter.phase:  # no line of the log averages over two phases
                if meter.metrics:
                    log.train(step, meter.read() | {"progress": clock.read(step)[1]})
                announce_phase(run, log, number)
                meter.phase = number
            knobs = run.assembly.objectives[number].knobs(progress)
            votes = run.votes.cast(clock.elapsed, bool(stopped))
            batch = run.shard_batch(next(batches))
            scalars = np.int32(step), np.float32(done), {name: np.float32(knob) for name, knob in knobs.items()}
            inputs = (batch, *scalars, *votes)
            program = (number, *(array.shape for array in batch.values()))
            previous_metrics, previous_agreed = metrics, agreed
            if timed := program in compiled:
                state, (metrics, agreed) = compiled[program](state, *inputs)
            else:  # compilation, and the first execution with it, is not part of the speed
                if not any(phase == number for phase, *_ in compiled):
                    log.note("compiling the training step")  # which takes seconds to minutes
                jax.block_until_ready(state)
                with meter.excluding(), clock.compiling():
                    compiled[program] = compile_step(run, number, state, *inputs)
                    state, (metrics, agreed) = jax.block_until_ready(compiled[program](state, *inputs))
            step += 1
            meter.add(batch["tokens"].shape, knobs, metrics, timed)
            _stop_on_nan(previous_metrics, step - 1, checkpoints)  # one update is always under way: check the last one

            stopping = clock.agree(previous_agreed) if votes else bool(stopped)
            over = clock.is_over(step)  # asked once per step: a save that outlasts a time budget must not be the last
            due = [evaluator for evaluator in evaluators if _due(evaluator.every, step) and not over]
            saving, results = _saves(config.checkpoint.every, step) and not over, {}
            if step % config.logging.every == 0:
                log.train(step, meter.read() | {"progress": clock.read(step)[1]})
            if due or saving:
                _stop_on_nan(metrics, step, checkpoints)
                with meter.excluding():
                    with clock.compiling(bool(due) and number not in evaluated):
                        results = _evaluate(run, due, state, log, step, checkpoints)
                    evaluated |= {number} if due else set()
                    saving = saving or _improves(checkpoints, _score(run, clock, step, results))
                    if saving:
                        _save(run, checkpoints, step, state, clock, results)
                        if config.checkpoint.every == 1:  # no save may be under way when the next one begins
                            checkpoints.wait()
                        log.event("checkpoint", step=step)
                if selects and selects.name in results and _is_stale(config.evaluation, checkpoints, step):
                    log.note(f"stopping early: {config.evaluation.patience} evaluations without a better one")
                    over = True
            if due or saving or (step - first_step).bit_count() == 1:
                memory.give_back()  # also after 1, 2, 4, ... updates: most unused memory appears early
        _stop_on_nan(metrics, step, checkpoints)
        if meter.metrics:
            log.train(step, meter.read() | {"progress": clock.read(step)[1]})

        # 3. Stopped by a signal: save, and say how to resume. Complete: the last evaluation, checkpoint and checksum.
        if stopping and not over:
            _save(run, checkpoints, step, state, clock, results)
            checkpoints.wait()
            by = stopped[0] if jax.process_count() == 1 else "a signal to one of the processes"
            raise UserError(f"stopped by {by}; step {step} is saved, and the same command resumes from it")
        clock.stop()
        during = [evaluator for evaluator in evaluators if evaluator.selects or not evaluator.report]
        results = _evaluate(run, during, state, log, step, checkpoints)
        _save(run, checkpoints, step, state, clock, results)
        checkpoints.wait()
        results |= _report(run, checkpoints, selects, state["params"], log, step, results)
        checksum = params_sha256(state["params"])
        log.event("end", step=step, params_sha256=checksum, peak_bytes=hardware.peak_memory_bytes())
        for evaluator in evaluators:
            log.note(evaluator.describe(evaluator.name, results[evaluator.name]))
        for remark in remarks(run, results, step):
            log.note(remark)
        if selects and config.checkpoint.keep_best and (best := checkpoints.best()):
            reports = any(evaluator.report for evaluator in evaluators)
            log.note(describe_best(selects, *best, last=step, reported=reports))
        if run.start and results and jax.process_index() == 0:
            events = [event for event in read_metrics(workdir) if event["kind"] == "evaluation" and event["step"] == 0]
            log.note(before_and_after({event["name"]: event for event in events}, results))
        log.note(f"params sha256 {checksum}")
        return {"step": step, "params_sha256": checksum, "evaluation": results}


def _report(
    run: Run, checkpoints: Checkpoints, selects: Evaluator | None, params: dict, log: RunLog, step: int,
    selection: dict[str, Metrics],
) -> dict[str, Metrics]:  # fmt: skip
    """Returns the metrics of the sets that are reported on the best checkpoint, and writes them to results.json.

    `params` are those after the last `step`, and what is reported if no set selects; `selection` are its metrics. What
    is fitted on the selecting set, on the same checkpoint, is written beside them.
    """
    if not any(evaluator.report or evaluator.fit for evaluator in run.evaluators):
        return {}
    best = checkpoints.best() if selects and run.config.checkpoint.keep_best else None
    if best and best[0] != step:
        abstract = run.assembly.abstract_state["params"]
        params = restore_params(checkpoints.directory, abstract, best[0]).state
    reported = best[0] if best else step
    if (fitted := run.fit(params, reported)) and selects:
        log.note(describe_calibration(selects.name, fitted))
    results = run.report(params, log, reported, fitted)
    if jax.process_index() == 0:
        updates_per_epoch = run.rows.steps_for(1000.0, None) / 1000
        protocol = describe_protocol(run.config, selects, best, step, updates_per_epoch)
        write_calibration(run.workdir, reported, selects.name if selects else "", fitted)
        write_results(run.workdir, results, selection, protocol)
    return results


def _is_stale(evaluation: Any, checkpoints: Checkpoints, step: int) -> bool:
    """Returns whether the last `evaluation.patience` evaluations were not better than one before them."""
    best = checkpoints.best() if evaluation.patience else None
    return best is not None and step // evaluation.every - best[0] // evaluation.every >= evaluation.patience


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


def _save(
    run: Run, checkpoints: Checkpoints, step: int, state: dict, clock: Clock, results: dict[str, Metrics]
) -> None:
    """Saves a checkpoint, with the metric that chooses the best one if it has been evaluated at this step."""
    score = _score(run, clock, step, results)
    metadata = {
        "elapsed_seconds": clock.elapsed, "data": run.data.fingerprint, "config": config_to_dict(run.config)
    }  # fmt: skip
    try:
        checkpoints.save(step, state, metadata, score=score)
    except NonFinite as error:
        raise _nan_error(step, checkpoints, str(error)) from error


def _evaluate(
    run: Run, evaluators: Sequence[Evaluator], state: dict, log: RunLog, step: int, checkpoints: Checkpoints
) -> dict[str, Metrics]:
    """Returns the metrics of each evaluator by its name. Raises UserError if a loss is NaN or infinite."""
    try:
        return run.evaluate(evaluators, state["params"], log, step)
    except NotFinite as error:
        raise _nan_error(step, checkpoints, f"{error.what} is not finite") from error


def _score(run: Run, clock: Clock, step: int, results: dict[str, Metrics]) -> float | None:
    """Returns the metric that chooses the best checkpoint, if it has been evaluated and this step may be the best."""
    selects, progress = selector(run.evaluators), clock.read(step)[1]
    if not selects or selects.name not in results or progress < run.assembly.update.complete_from:
        return None
    return results[selects.name][selects.selects]


def _improves(checkpoints: Checkpoints, score: float | None) -> bool:
    """Returns whether an evaluation is the best so far and the best is kept, so that its step has to be saved."""
    if not checkpoints.keep_best or score is None:
        return False
    return distributed.from_first(lambda: checkpoints.is_better(score))


def _stop_on_nan(metrics: dict[str, Array] | None, step: int, checkpoints: Checkpoints) -> None:
    if metrics is not None and not np.isfinite(float(metrics["loss"])):
        raise _nan_error(step, checkpoints, "the loss is not a number")


def _nan_error(step: int, checkpoints: Checkpoints, what: str) -> UserError:
    checkpoints.wait()
    newest = checkpoints.newest()
    kept = f"the checkpoint of step {newest} is kept" if newest is not None else "no checkpoint was saved before"
    return UserError(f"step {step}: {what}; {kept}; lower optimizer.learning_rate, or lengthen schedule.warmup")


class _Meter:
    """The metrics and the speed since they were last read, all in one phase."""

    def __init__(self, run: Run) -> None:
        self.objectives = run.assembly.objectives
        peak = hardware.peak_flops(dtype=run.config.train.compute_dtype)
        self.peak = peak.flops * run.assembly.mesh.size
        self.counted = frozenset[str]().union(*(objective.counted for objective in self.objectives))
        self.phase = -1
        self._clear()

    def _clear(self) -> None:
        self.metrics: list[dict[str, Array]] = []
        self.steps: list[tuple[tuple[int, ...], dict[str, float], bool]] = []
        self.last = time.monotonic()

    def add(self, shape: tuple[int, ...], knobs: dict[str, float], metrics: dict[str, Array], timed: bool) -> None:
        """Adds a step of the phase on a batch of this shape, [B, L]; its speed counts if it was `timed`."""
        self.steps.append((shape, knobs, timed))
        self.metrics.append(metrics)

    @contextlib.contextmanager
    def excluding(self) -> Iterator[None]:
        """Excludes the time of the body from the speed, and what came before it if no step has been timed yet."""
        begin = time.monotonic()
        yield
        end = time.monotonic()
        self.last = self.last + end - begin if any(timed for *_, timed in self.steps) else end

    def read(self) -> dict[str, float]:
        """Returns means of the metrics over the steps (sums of the counted ones), and starts again.

        Beside them: the fraction of the tokens that are padding, tokens per second with and without it, and MFU; the
        speed is missing if no step was timed.
        """
        fetched = jax.device_get(self.metrics)
        seconds = max(time.monotonic() - self.last, 1e-9)
        columns = {name: [float(entry[name]) for entry in fetched] for name in fetched[0]}
        padding = columns.pop("padding")
        result = {name: float(np.mean(values)) for name, values in columns.items()}
        result |= {name: float(np.sum(columns[name])) for name in self.counted & columns.keys()}
        result |= {
            "learning_rate": columns["learning_rate"][-1],
            "padding": sum(padding) / sum(batch_size * length for (batch_size, length), *_ in self.steps),
        }
        tokens, real, flops = 0, 0.0, 0.0
        for ((batch_size, length), knobs, timed), unused in zip(self.steps, padding, strict=True):
            if timed:
                size = batch_size * length
                tokens, real = tokens + size, real + size - unused
                flops += self.objectives[self.phase].flops(batch_size, length, int(size - unused), knobs)
        if tokens:
            result |= {
                "tokens_per_second": tokens / seconds,
                "tokens_per_second_without_padding": real / seconds,
                "mfu": flops / seconds / self.peak,
            }
        self._clear()
        return result


def main(argv: Sequence[str]) -> int:
    """`jaxlm train --config=CONFIG[:ARG] --workdir=DIR [--config.section.key=VALUE ...]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm train", description="Train a model, or resume the run of a work directory.",
        usage="%(prog)s --config=CONFIG[:ARG] --workdir=DIR\n                   [--config.section.key=VALUE ...]",
        formatter_class=HelpFormatter,
        epilog="example:\n  jaxlm train --config=mini --workdir=runs/mini",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="CONFIG[:ARG]", help="a recipe, a config file, or a "
                        "run's config.json")  # fmt: skip
    parser.add_argument(
        "--workdir", required=True, metavar="DIR",
        help="directory of the run: a new or empty one, or that of a run, which is resumed",
    )  # fmt: skip
    args = parser.parse_args(rest)
    train_from(args.config, args.workdir, overrides)
    return 0


def train_from(config: ConfigDict | str | Path, workdir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains what a config, a config file or a recipe describes. See `jaxlm.train`."""
    if not isinstance(overrides, list | tuple) or not all(isinstance(one, str) for one in overrides):
        raise UserError('overrides must be a list of str such as ["train.steps=100"]')
    workdir = local_path("--workdir", workdir)
    check_workdir(workdir)
    resolved, start = load_run_config(config, overrides, workdir)
    check_trackers(resolved.logging)
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
