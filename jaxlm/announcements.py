"""What a run says about itself: its size and length when it begins, each phase, jumps of its rates, and the end."""

import jax
import numpy as np

from jaxlm.config import config_from_dict, phase_number, phases_of
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.huggingface.family_config import nearest_family
from jaxlm.huggingface.task_heads import target_of, task_of_config, unwritten_dropout
from jaxlm.objectives.causal_lm import EXPORT_NOTE
from jaxlm.objectives.table import OBJECTIVES
from jaxlm.optimizer.parameter_rules import frozen_mask
from jaxlm.optimizer.schedules import make_schedule
from jaxlm.run import Run, schedule_length, total_steps
from jaxlm.runtime import hardware
from jaxlm.runtime.checkpoint import Saved
from jaxlm.runtime.clock import Clock
from jaxlm.runtime.run_log import RunLog

ENDS = ("steps", "epochs", "tokens", "minutes")  # the settings of `train` that end a run
SMALL_JUMP = 0.01  # of the peak learning rate, or of the tokens that are masked: not worth a line


def announce(run: Run, log: RunLog, step: int, clock: Clock) -> None:
    """Logs what a run consists of when it begins or resumes after `step` updates."""
    train, assembly, mesh = run.config.train, run.assembly, run.assembly.mesh
    parameters = sum(leaf.size for leaf in jax.tree.leaves(assembly.abstract_state["params"]))
    sizes = "x".join(str(size) for size in mesh.shape.values())
    log.event("start", step=step, elapsed_seconds=clock.elapsed, total_steps=run.total_steps, parameters=parameters,
              data=run.data.fingerprint, tokenizer=run.data.tokenizer.fingerprint, mesh=dict(mesh.shape),
              compute_dtype=train.compute_dtype, attention=assembly.attention,
              training=run.describe_phases(), evaluation={e.name: e.protocol for e in run.evaluators},
              **hardware.describe_machine())  # fmt: skip
    log.note(
        f"{parameters:,} parameters, vocabulary {assembly.encoder.vocab_size:,}; products in {train.compute_dtype} "
        f"on {sizes} {jax.devices()[0].platform} (data x fsdp x tensor); {run.rows.describe()}; {_length(run)}"
    )
    log.note(assembly.attention)
    if run.start or run.config.optimizer.freeze:
        log.note(_trained_parameters(run, parameters))
    for line in assembly.update.notes:
        log.note(line)
    for line in [] if step else _export_limits(run):
        log.note(line)
    if clock.is_over(step):
        end = next(name for name in ENDS if train[name] is not None)
        log.note(f"this run is complete at step {step}; to extend it, raise train.{end}")
    elif step:
        log.note(f"resuming after step {step}")


def _length(run: Run) -> str:
    """Returns the length of a run in words, such as "400 steps (3.2 epochs)"."""
    train, steps = run.config.train, run.total_steps
    if steps is None:
        return f"{train.minutes:g} minutes, " + ("with" if train.count_compilation else "without") + " compilation"
    if len(run.assembly.phases) > 1 or run.config.data.weights:  # then an epoch is not a number of steps
        return f"{steps:,} steps"
    epoch = run.rows.steps_for(1000.0, None) / 1000  # which may end within a step
    return f"{steps:,} steps ({steps / epoch:,.2f} epochs)"


def _trained_parameters(run: Run, parameters: int) -> str:
    """Returns a sentence about how many of the parameters learn, and which are frozen."""
    settings, params = run.config.optimizer, run.assembly.abstract_state["params"]
    if not settings.freeze:
        return f"all {parameters:,} parameters are trained"
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(frozen_mask(settings, params)), strict=True)
    trained = sum(leaf.size for leaf, frozen in pairs if not frozen)
    return f"{trained:,} of {parameters:,} parameters are trained; frozen: {','.join(settings.freeze)}"


def _export_limits(run: Run) -> list[str]:
    """Returns what `jaxlm export` will not write of this model, in lines; none if it can write everything."""
    lines: list[str] = []
    encoder, task = run.assembly.encoder, task_of_config(run.config, run.assembly.encoder)
    if task:
        base = (run.start.source_config or {}).get("model_type") if run.start else None
        target = target_of(encoder, task, base)
        family, lacking, headless = target
        lines += filter(None, [unwritten_dropout(target, encoder, task)])
    else:
        family, lacking = nearest_family(encoder)
        headless = "" if OBJECTIVES[run.config.train.objective].predicts_tokens else "Transformers has none of its kind"
    if lacking:
        lines.insert(
            0, f"cannot be exported to Transformers: the nearest family, {family.name}, lacks {', '.join(lacking)}"
        )
    elif headless and "head" in run.assembly.abstract_state["params"]:
        lines.append(f"`jaxlm export` will write the encoder of this model without its head: {headless}")
    if phases_of(run.config)[-1].objective == "causal":
        lines.append(EXPORT_NOTE)
    try:
        run.data.tokenizer.transformers_files(run.config.data.sequence_length, token_types=False)
    except UserError as error:
        lines.append(str(error))
    return lines


def announce_phase(run: Run, log: RunLog, number: int) -> None:
    """Logs the beginning of a phase, whose losses cannot be compared with those of the phase before."""
    phases, phase = run.assembly.phases, run.assembly.phases[number]
    if len(phases) > 1:
        log.note(
            f"phase {number + 1} of {len(phases)}: {run.describe_phase(number)}; {phase.batch_size} rows of "
            f"{phase.sequence_length} tokens"
        )
    note = run.assembly.objectives[number].evaluation_note
    if note and run.evaluators:
        log.note(note)


def describe_jump(run: Run, saved: Saved, clock: Clock) -> str:
    """Returns a line about the jump of the rates at this step if the run has another length than before; else ""."""
    if "config" not in saved.metadata or clock.is_over(saved.step):
        return ""
    config, train, step = run.config, run.config.train, saved.step
    before = config_from_dict(saved.metadata["config"], "the config of the checkpoint").train
    changes = [f"train.{name} from {before[name]} to {train[name]}" for name in ENDS if before[name] != train[name]]
    if not changes:
        return ""
    number = phase_number(run.assembly.phases, step)
    peak, objective = run.assembly.phases[number].learning_rate, run.assembly.objectives[number]

    def rates(clock: Clock, step: int) -> tuple[float, float | None]:
        """Returns the learning rate and the mask rate of an update."""
        done, progress = clock.read(step)
        rate = peak * float(make_schedule(config.schedule, schedule_length(clock.total_steps))(np.float32(done)))
        return rate, objective.knobs(progress).get("mask_rate")

    earlier = Clock(before.minutes, total_steps(before, run.rows), saved.metadata["elapsed_seconds"])
    (rate, masked), (next_rate, next_masked) = rates(earlier, max(step - 1, 0)), rates(clock, step)
    jumps, remedies = [], []
    if abs(next_rate - rates(earlier, step)[0]) > SMALL_JUMP * peak:
        jumps.append(f"the learning rate jumps from {rate:.3g} to {next_rate:.3g}")
        remedies.append("schedule.name=constant, or wsd extended before its decay begins")
    if masked and next_masked and abs(next_masked - masked) > SMALL_JUMP:
        jumps.append(f"the mask rate jumps from {masked:.1%} to {next_masked:.1%}")
        remedies.append("masking.final_rate=none")
    if not jumps:
        return ""
    return (
        f"the length of the run has changed ({', '.join(changes)}), and its schedules depend on that length: "
        f"{' and '.join(jumps)} at step {step + 1:,}; a run can be extended without a jump if it was trained with "
        f"{', and with '.join(remedies)}"
    )


def remarks(run: Run, results: dict[str, Metrics], step: int) -> list[str]:
    """Returns warnings about the metrics of the last evaluation, such as a loss above the baseline."""
    if note := run.assembly.objectives[phase_number(run.assembly.phases, max(step - 1, 0))].evaluation_note:
        return [f"in the phase of the last step, {note}"] if results else []
    remarks = [evaluator.remark(results[evaluator.name]) for evaluator in run.evaluators]
    return [remark for remark in remarks if remark]


def describe_best(selects: Evaluator, step: int, score: float, last: int, reported: bool = False) -> str:
    """Returns a line about the best checkpoint. A metric is optimistic on the set by which the step was chosen.

    `reported` says whether other sets have been evaluated on it.
    """
    extreme = "highest" if selects.higher_is_better else "lowest"
    protocol = f" ({selects.protocol})" if selects.protocol else ""
    which = f"the last one, step {step:,}" if step == last else f"step {step:,}"
    text = f"best checkpoint: {which}, with the {extreme} {selects.selects} on {selects.name}, {score:.4g}{protocol}"
    if step == last:
        return text
    which = f"the figures of {selects.name}" if reported else "the figures above"
    return f"{text}; {which} are those of the last step, {last:,}"
