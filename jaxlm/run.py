"""What a run is made of: the resolved config, the data, the assembly of its steps, and its evaluators."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxlm import init_from, storage
from jaxlm.config import (
    changed_settings,
    config_from_dict,
    config_to_dict,
    load_config,
    phase_number,
    phases_of,
    save_config,
)
from jaxlm.data.augmentation import ways_of
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.data.prepared import record_crc32
from jaxlm.data.rows import RowSource
from jaxlm.data.table import DATA, Data
from jaxlm.data.task_data import TaskData
from jaxlm.data.tasks.table import KINDS, shared_labels
from jaxlm.data.tasks.template import OBJECTIVE as TEMPLATES
from jaxlm.data.tasks.template import resolve_template
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.evaluation.table import EVALUATORS
from jaxlm.evaluation.teacher import find_teacher, with_teacher
from jaxlm.huggingface.conversion import SOURCE_CONFIG
from jaxlm.huggingface.task_heads import task_of_config
from jaxlm.init_from import Fitting, Start
from jaxlm.model.config import encoder_config
from jaxlm.runtime import distributed, hardware, sharding
from jaxlm.runtime.clock import TIME_UNITS
from jaxlm.runtime.parameter_paths import layer_count
from jaxlm.runtime.run_log import RunLog
from jaxlm.settings import REQUIRED
from jaxlm.step import Assembly, assemble, run_seeds
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.use.replacements import check_replacements, with_augmentation

MARKER = ".jaxlm-run"  # a file in every work directory: what else is in it may be replaced


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a run is made of: everything but the state and the clock."""

    config: Any
    workdir: Path
    data: Data
    assembly: Assembly
    rows: RowSource
    evaluators: list[Evaluator]
    total_steps: int | None  # None: a time budget ends the run
    start: Start | None  # what model.init_from names
    votes: distributed.Votes

    @property
    def schedule_length(self) -> float:
        return schedule_length(self.total_steps)

    def describe_phase(self, number: int) -> str:
        """Returns what is predicted in a phase, in words: two losses can be compared only if it is the same."""
        objective = self.assembly.objectives[number]
        return objective.describe() + (", with dropout" if objective.dropout else "")

    def describe_phases(self) -> list[tuple[int, str]]:
        """Returns the first update of each phase, counted from 1, and what is predicted in it."""
        steps = [phase.steps or 0 for phase in self.assembly.phases]
        return [(sum(steps[:number]) + 1, self.describe_phase(number)) for number in range(len(steps))]

    def fresh_state(self) -> dict:
        """Returns the state before the first update: fresh parameters, or those of model.init_from."""
        state = self.assembly.fresh_state()
        if self.start:
            model, tokenizer = self.config.model, self.config.tokenizer
            before = load_tokenizer(tokenizer.path, tokenizer.words)
            params = self.start.params(self.assembly.encoder, before, self.data.tokenizer, Fitting.of(model))
            drop_top(params, model.reinitialize_layers, keep_head=self.assembly.objectives[0].predicts_tokens)
            fresh = state.pop("params")
            state.clear()  # gives back the memory of the optimizer state, which may depend on the parameters
            state = self.assembly.started_from(_replaced(fresh, self._inherited(self.start, params)))
        return state

    def _inherited(self, start: Start, params: dict) -> dict:
        """Returns those of the start's parameters that this run takes over, and logs what it does not."""
        objective = self.assembly.objectives[0]
        log = logging.getLogger("jaxlm")
        task = task_of_config(self.config, self.assembly.encoder)
        why = start.why_new_head(self.config.train.objective, self.data.facts.labels, task)
        if "task_head" in params and why:
            del params["task_head"]
            new = "its head is not used" if objective.predicts_tokens else "a new head is initialized"
            log.warning("%s %s: %s", start.name, why, new)
        if objective.predicts_tokens and "head" not in params:
            log.warning("%s has no masked-LM head: a new head is initialized", start.name)
        if objective.predicts_tokens and "pooler" in params:
            log.warning("%s: ignored, since a masked language model has none: pooler.dense", start.name)
        return objective.inherit(params)

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns the global batch on the mesh, of which this process gives its rows."""
        return sharding.shard_batch(self.assembly.mesh, batch)

    def evaluate(self, evaluators: Sequence[Evaluator], params: dict, log: RunLog, step: int) -> dict[str, Metrics]:
        """Returns the metrics of each evaluator by its name, and logs them; `step` updates have been done."""
        return self._evaluated([(evaluator.name, evaluator.evaluate) for evaluator in evaluators], params, log, step)

    def fit(self, params: dict, step: int) -> dict[str, Any]:
        """Returns what is fitted on the selecting set, with the parameters after `step`; {} if nothing is."""
        fits = [evaluator.fit for evaluator in self.evaluators if evaluator.fit]
        return fits[0](params, self._phase_after(step)) if fits else {}

    def report(self, params: dict, log: RunLog, step: int, fitted: Mapping[str, Any]) -> dict[str, Metrics]:
        """Returns and logs the metrics of the sets that are reported at the end, with the parameters after `step`.

        `fitted` is what `fit` returned for them.
        """
        reported = [
            (evaluator.name, functools.partial(evaluator.evaluate_report, fitted))
            for evaluator in self.evaluators
            if evaluator.report
        ]
        return self._evaluated(reported, params, log, step)

    def _phase_after(self, step: int) -> int:
        return phase_number(self.assembly.phases, max(step - 1, 0))

    def _evaluated(
        self, evaluations: Sequence[tuple[str, Callable]], params: dict, log: RunLog, step: int
    ) -> dict[str, Metrics]:
        number, results = self._phase_after(step), {}
        for name, evaluation in evaluations:
            results[name] = evaluation(params, number)
            log.evaluation(step, name, results[name])
        return results


def drop_top(params: dict, count: int, keep_head: bool) -> None:
    """Removes the top `count` layers from parameters that a run starts from, and unless `keep_head`, what is above.

    The run then keeps its fresh ones (arXiv 2006.05987).
    """
    layers = layer_count(params)
    for number in range(layers - count, layers):
        del params["encoder"][f"layers_{number}"]
    if count and not keep_head:
        for name in params.keys() - {"encoder"}:
            del params[name]


def _replaced(params: Any, given: Any) -> Any:
    """Returns the parameters with those of `given`, arrays on the host, in their place, sharded as they were."""
    if not isinstance(given, dict):
        return jax.make_array_from_callback(params.shape, params.sharding, lambda index: given[index])
    return params | {name: _replaced(params[name], branch) for name, branch in given.items()}


def check_workdir(workdir: Path) -> None:
    """Raises UserError unless a work directory is new, empty, or that of a run, so that no other files are replaced."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a directory")
    try:
        entries = storage.foreign_entries(workdir, _holds_run)
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {storage.reason(error)}; name another --workdir") from error
    if entries:
        more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
        raise UserError(
            f"--workdir={workdir} contains files that are not of a run ({', '.join(entries[:3])}{more}); name a new or "
            "an empty directory"
        )


def _holds_run(directory: Path) -> bool:
    """Returns whether a directory is a work directory, also one that an older version wrote or that was interrupted."""
    if (directory / MARKER).exists() or {entry.name for entry in directory.iterdir()} == {"lock"}:
        return True
    data, config = (_keys(directory / name) for name in ("data.json", "config.json"))
    if {"directory", "fingerprint"} <= data <= {"directory", "fingerprint", "crc32"}:
        return True
    # `jaxlm config --json` writes the same config.json elsewhere: alone, it is no run.
    written = any((directory / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    return {"checkpoint", "data", "masking", "mesh", "model", "optimizer", "train"} <= config and written


def _keys(file: Path) -> set[str]:
    """Returns the keys of the JSON object in a file; none if it holds something else."""
    try:
        return set(storage.read_json(file))
    except UserError:
        return set()


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work directory against other runs on this machine, until the body or the process ends.

    It is created and marked if it is new. Raises UserError if it contains other files than those of a run.
    """
    if jax.process_index() > 0:
        yield
        return
    check_workdir(workdir)
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if not (workdir / MARKER).exists():
                (workdir / MARKER).write_text(
                    "This is a work directory of `jaxlm train`, which replaces files in it.\n"
                )
            busy = f"{workdir} is in use by another process; wait for it, or name another --workdir"
            stack.enter_context(storage.lock(workdir / "lock", busy))
        except OSError as error:
            raise UserError(f"{workdir} cannot be written: {storage.reason(error)}; name another --workdir") from error
        yield


def load_run_config(
    spec: str | Path | ConfigDict, overrides: Sequence[str], workdir: Path | None = None
) -> tuple[ConfigDict, Start | None]:
    """Returns the config of a run and what its model.init_from names, resolved once. Raises UserError.

    Architecture and tokenizer come from the named directory, under the overrides; arguments as of `load_config`.
    """
    config, start = init_from.load_config_and_start(spec, overrides, workdir)
    _check_start(config)
    return config, start


def _check_start(config: Any) -> None:
    """Raises UserError if the recipe is for weights that exist already, and none are named."""
    if config.model.init_from == REQUIRED:
        raise UserError(
            "this config starts from a trained model: set --config.init_from=DIR, a work directory or a Hugging Face "
            "directory, or use a config that trains from scratch, such as configs/quickstart.py"
        )


def set_up(config: Any, workdir: Path, start: Start | None = None) -> Run:
    """Resolves what the config leaves open, prepares or finds the data, writes config.json, and returns the run.

    `start` is what model.init_from names, if it has been resolved already. Raises UserError.
    """
    config = config_from_dict(config_to_dict(config), "config")
    _check_start(config)
    resolve_template(config)
    before = _config_of_workdir(workdir)
    _agree_on_config(config)
    _resolve_execution(config, before)
    if before:
        config.model.vocab_size = config.model.vocab_size or before.model.vocab_size
        config.tokenizer.vocab_size = config.tokenizer.vocab_size or before.tokenizer.vocab_size
        config.task.labels = config.task.labels or before.task.labels
        config.task.intermediate = config.task.intermediate or before.task.intermediate
        if changed := changed_settings(before, config):
            differences = "; ".join(changed)
            raise UserError(
                f"{workdir} holds a run with other settings ({differences}); restore them, or use a new --workdir"
            )
    if config.model.init_from and start is None:
        start = init_from.resolve(config.model.init_from, workdir)

    # What the devices or the weights do not allow is reported before any data is read.
    mesh, platform = sharding.make_mesh(config.mesh), jax.devices()[0].platform
    kind, phases = DATA[config.train.objective], phases_of(config)
    kind.check(config, mesh, phases)
    any_size = encoder_config(config.model, config.model.vocab_size or 8)
    assemble(config, any_size, SYNTHETIC_FACTS, mesh, platform)
    teacher = find_teacher(config)
    check_replacements(config, workdir)
    if start and distributed.from_first(lambda: not before):  # otherwise the weights are those of a checkpoint
        start.check(any_size, Fitting.of(config.model))
        start.check_task(config.task.intermediate)
        if config.train.objective == TEMPLATES:
            start.check_masked_lm_head()
        start.check_weights()

    config.task.intermediate = config.task.intermediate or (start.trained_on if start else "")
    if start and start.labels and not config.task.labels and config.train.objective in KINDS:
        config.task.labels = shared_labels(config, start.labels)
    data = _data_of_run(config, workdir)
    if config.tokenizer.add and config.model.vocab_size:  # the token table grows with the tokens that are added
        config.model.vocab_size = max(config.model.vocab_size, data.tokenizer.vocab_size)
    encoder = encoder_config(config.model, data.tokenizer.vocab_size)
    if teacher and isinstance(data, TaskData):
        data = with_teacher(data, teacher, config, encoder.width, mesh)
    if isinstance(data, TaskData) and ways_of(config.task):
        data = with_augmentation(data, config, run_seeds(config)["data"], workdir)
    config.model.vocab_size, config.task.labels = encoder.vocab_size, data.facts.labels
    if not config.tokenizer.path:
        config.tokenizer.vocab_size = config.tokenizer.vocab_size or data.tokenizer.vocab_size

    assembly = assemble(config, encoder, data.facts, mesh, platform)
    multiple = int(np.lcm.reduce([sharding.batch_parts(mesh) * phase.accumulate for phase in phases]))
    rows = data.rows(config, phases, run_seeds(config)["data"], multiple)
    if config.evaluation.per_epoch:
        config.evaluation.every = max(1, round(rows.steps_for(1000.0, None) / 1000 / config.evaluation.per_epoch))
    if jax.process_index() == 0:
        save_config(config, workdir / "config.json")
        if start and start.source_config and not before:
            storage.write_text(workdir / SOURCE_CONFIG, json.dumps(start.source_config, indent=2) + "\n")
    evaluators = EVALUATORS[config.train.objective](assembly, data, workdir)
    total = total_steps(config.train, rows)
    return Run(config, workdir, data, assembly, rows, evaluators, total, start, distributed.Votes(mesh))


def _config_of_workdir(workdir: Path) -> Any:
    """Returns the config of the run that this work directory holds; None if it holds none."""
    if (workdir / "config.json").exists() and any((workdir / "checkpoints").glob("*")):
        return load_config(str(workdir / "config.json"))
    return None


def _agree_on_config(config: Any) -> None:
    """Raises UserError on a process that was started with other settings than the first."""
    first = config_from_dict(distributed.from_first(lambda: config_to_dict(config)), "config")
    if changed := changed_settings(first, config, resuming=False):
        raise UserError(
            f"process {jax.process_index()} was started with other settings than the first ({'; '.join(changed)}); "
            "give all of them the same"
        )


def _resolve_execution(config: Any, before: Any) -> None:
    """Sets what train.deterministic and train.compute_dtype=auto mean on this machine."""
    if config.train.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if config.train.compute_dtype == "auto":
        fast = distributed.from_first(lambda: bool(before) or hardware.fast_bfloat16())
        config.train.compute_dtype = before.train.compute_dtype if before else ("bfloat16" if fast else "float32")


def _data_of_run(config: Any, workdir: Path) -> Data:
    """Returns the data of a run: prepared or found by its first process, while the others wait.

    Processes that see the first one's disk read them there; on other machines they are prepared again.
    """
    kind = DATA[config.train.objective]
    made: list[Data] = []

    def make() -> list[str]:
        made.append(_data_of_workdir(config, workdir, kind.prepare, kind.reopen))
        return [str(made[0].directory), made[0].fingerprint]

    directory, fingerprint = distributed.from_first(make)
    if made:
        return made[0]
    data = kind.reopen(Path(directory), config)
    if data is not None and data.fingerprint == fingerprint:
        return data
    if (data := kind.prepare(config)).fingerprint != fingerprint:
        raise UserError(
            f"process {jax.process_index()} finds other data than the first; give all processes the same files, or a "
            "data.cache that all of them can read"
        )
    return data


def _data_of_workdir(config: Any, workdir: Path, prepare: Callable, reopen: Callable) -> Data:
    """Returns the data that this work directory was trained on, or those of the config; saves their tokenizer."""
    record = workdir / "data.json"
    known = _known_data(record)
    if known:
        data = reopen(Path(known["directory"]), config)
        if data is not None and data.fingerprint == known["fingerprint"]:
            return data
    data = prepare(config)
    if known and data.fingerprint != known["fingerprint"]:
        raise UserError(
            f"the data have changed since {workdir} was trained on them; restore them, or use a new --workdir"
        )
    content = {"directory": str(data.directory), "fingerprint": data.fingerprint}
    try:
        data.tokenizer.save(workdir / "tokenizer")
        np.save(workdir / "token_counts.npy", data.facts.counts, allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"cannot write {workdir}: {storage.reason(error)}; fix that and run the same command again"
        ) from error
    storage.write_text(record, json.dumps(content | {"crc32": record_crc32(content)}))
    return data


def _known_data(record: Path) -> dict[str, str] | None:
    """Returns what data.json holds; None if it is missing or damaged: the data are then found by the config."""
    if not record.exists():
        return None
    try:
        known = storage.parse_json(storage.read_bytes(record))
        content = {name: str(known[name]) for name in ("directory", "fingerprint")}
        whole = known.get("crc32") in (None, record_crc32(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if whole:
        return content
    logging.getLogger("jaxlm").warning("%s is damaged and will be written again", record)
    return None


def schedule_length(total_steps: int | None) -> float:
    """Returns a run's length in the schedule's unit: updates, or thousandths of the time budget."""
    return TIME_UNITS if total_steps is None else total_steps


def total_steps(train: Any, rows: RowSource) -> int | None:
    """Returns the number of updates of a run; None if a time budget ends it."""
    if train.minutes is not None:
        return None
    if train.steps is not None:
        return train.steps
    if train.tokens is None and train.epochs is None:
        raise UserError("set one of train.steps, train.epochs, train.tokens and train.minutes: it ends the run")
    return rows.steps_for(train.epochs, train.tokens)
