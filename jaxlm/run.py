"""What a run is made of: the config resolved, its data, its model on the mesh. Only `train.py` moves it."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jaxlm import storage
from jaxlm.config import (
    Phase,
    changed_settings,
    config_from_dict,
    config_to_dict,
    load_config,
    phase_number,
    phases_of,
    save_config,
)
from jaxlm.data.corpus import Prepared, open_prepared, prepare
from jaxlm.data.prepared import record_crc32
from jaxlm.data.rows import TrainRows, held_out_batches
from jaxlm.errors import UserError
from jaxlm.evaluation.held_out import evaluate_held_out, make_evaluation_step
from jaxlm.huggingface.conversion import SOURCE_CONFIG
from jaxlm.init_from import check_start, source_config, start_params
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.execution import Execution, choose_execution
from jaxlm.model.heads import MaskedLM, abstract_params, init_params
from jaxlm.model.kernels.dispatch import choose_attention
from jaxlm.objectives import masking
from jaxlm.objectives.masking import Masking
from jaxlm.optimizer import optimizers
from jaxlm.runtime import distributed, hardware, sharding
from jaxlm.runtime.compiling import initial_options
from jaxlm.runtime.run_log import RunLog
from jaxlm.tokenizer.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a run is made of; everything but the state and the clock."""

    config: Any
    workdir: Path
    prepared: Prepared
    encoder: EncoderConfig
    execution: Execution
    attention: str  # which kernel computes it, and why, for the log
    masking: Masking
    mesh: Mesh
    phases: tuple[Phase, ...]
    rows: TrainRows
    total_steps: int | None  # None: a time budget ends the run
    update: optax.GradientTransformation
    abstract_state: dict
    votes: distributed.Votes

    @property
    def counts(self) -> np.ndarray:
        return np.sum([store.counts for store in self.prepared.train], axis=0)

    def fresh_state(self) -> dict:
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        seed = run_seeds(self.config)["init"]
        initial = functools.partial(initial_state, self.encoder, self.update, seed, self.counts)
        options = initial_options(jax.default_backend())
        state = jax.jit(initial, out_shardings=places, compiler_options=options)()
        if self.config.model.init_from:
            state["params"] = _replaced(state["params"], self.start_params())
        return state

    def start_params(self) -> dict:
        """Returns the weights of model.init_from, on the host; without a head where it has none."""
        model, tokenizer = self.config.model, self.prepared.tokenizer
        before = load_tokenizer(self.config.tokenizer.path, self.config.tokenizer.words)
        return start_params(model.init_from, self.encoder, before, tokenizer, model.extend_positions)

    def mask_rate(self, number: int, progress: float) -> float:
        """Returns the rate of phase `number`, or where masking.final_rate is set a point on the line to it."""
        first, last = self.phases[number].mask_rate, self.config.masking.final_rate
        return first if last is None else first + (last - first) * progress

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        return sharding.put_batch(self.mesh, batch)

    @functools.cache  # noqa: B019  (a process has one run)
    def evaluation_step(self, rotary_base: float) -> Callable:
        """Returns the compiled judging step of a phase, by what its model does otherwise than the others."""
        encoder = dataclasses.replace(self.encoder, rotary_base=rotary_base)
        model, piece_bytes = MaskedLM(encoder, self.execution), self.prepared.tokenizer.piece_bytes()
        length, most = self.config.data.sequence_length, hardware.logits_bytes(self.config.train.logits_megabytes)
        return make_evaluation_step(model, self.masking, self.counts, piece_bytes, length, most)

    def evaluate(self, params: dict, log: RunLog, step: int) -> dict[str, dict[str, float]]:
        """Judges the held-out sets, logs each, and returns their figures by name, in order."""
        config, results = self.config, {}
        phase = self.phases[phase_number(self.phases, max(step - 1, 0))]
        length = config.data.sequence_length
        size = config.evaluation.batch_size or config.train.batch_size
        for name, store in self.prepared.held_out.items():
            batches = held_out_batches(
                store, length, size, config.evaluation.rows, config.data.prepend_begin,
                self.prepared.tokenizer.begin_id, self.prepared.tokenizer.pad_id, *sharding.local_parts(self.mesh),
            )  # fmt: skip
            judge = self.evaluation_step(phase.rotary_base)
            results[name] = evaluate_held_out(judge, params, batches, self.put)
            log.evaluation(step, name, results[name])
        return results


def initial_state(encoder: EncoderConfig, update: optax.GradientTransformation, seed: int, counts: Any = None) -> dict:
    """Returns {"params", "opt_state"} before the first update; jit it with shardings, or ask only for its shapes."""
    params = init_params(encoder, seed, counts)
    return {"params": params, "opt_state": update.init(params)}


def _replaced(params: Any, given: Any) -> Any:
    """Returns the parameters with those of `given`, arrays of the host, in their place, split as they were."""
    if not isinstance(given, dict):
        return jax.make_array_from_callback(params.shape, params.sharding, lambda index: given[index])
    return params | {name: _replaced(params[name], branch) for name, branch in given.items()}


def run_seeds(config: Any) -> dict[str, int]:
    """Returns the seeds of "init", "data" and "mask": train.seed unless given."""
    given = {name: config.train[f"{name}_seed"] for name in ("init", "data", "mask")}
    return {name: config.train.seed if seed is None else seed for name, seed in given.items()}


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work directory against other runs on this machine; it is freed when the process ends, however."""
    if jax.process_index() > 0:
        yield
        return
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a directory")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / "lock", "a+")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{workdir} is in use by another process; wait for it, or name another --workdir") from error
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}; name another --workdir") from error
    with file:
        yield


def set_up(config: Any, workdir: Path) -> Run:
    """Prepares or finds the data, resolves what is "auto", writes config.json, and builds what the loop needs."""
    before = None
    if (workdir / "config.json").exists() and any((workdir / "checkpoints").glob("*")):
        before = load_config(str(workdir / "config.json"))
    config = config_from_dict(config_to_dict(config), "config")
    theirs = config_from_dict(distributed.from_first(lambda: config_to_dict(config)), "config")
    if changed := changed_settings(theirs, config, resuming=False):
        raise UserError(
            f"process {jax.process_index()} was started with other settings than the first ({'; '.join(changed)}); "
            "give all of them the same"
        )
    if config.train.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if config.train.compute_dtype == "auto":
        fast = distributed.from_first(lambda: bool(before) or hardware.fast_bfloat16())
        config.train.compute_dtype = before.train.compute_dtype if before else ("bfloat16" if fast else "float32")
    if before:
        config.model.vocab_size = config.model.vocab_size or before.model.vocab_size
        if changed := changed_settings(before, config):
            differences = "; ".join(changed)
            raise UserError(
                f"{workdir} holds a run with other settings ({differences}); give them as they were, or a new --workdir"
            )
    # What the devices cannot do is refused before anything is read.
    mesh = sharding.make_mesh(config.mesh)
    phases = phases_of(config)
    for phase in phases:
        sharding.check_batch(mesh, phase.batch_size, phase.accumulate)
    sharding.check_batch(mesh, config.evaluation.batch_size or config.train.batch_size, 1, "evaluation.batch_size")
    any_size = encoder_config(config.model, config.model.vocab_size or 8)
    optimizers.make_optimizer(config.optimizer, abstract_params(any_size))
    platform = jax.devices()[0].platform
    kernel, why = choose_attention(config.train.attention, any_size, config.train.compute_dtype, platform, mesh)
    if config.model.init_from and not before:
        check_start(config.model.init_from, any_size, config.model.extend_positions)

    prepared = _prepared_data(config, workdir)
    if config.tokenizer.add and config.model.vocab_size:  # the table grows with the tokens that are added
        config.model.vocab_size = max(config.model.vocab_size, prepared.tokenizer.vocab_size)
    encoder = encoder_config(config.model, prepared.tokenizer.vocab_size)
    config.model.vocab_size = encoder.vocab_size

    rows = TrainRows(
        prepared.train, list(config.data.weights) or None, phases, run_seeds(config)["data"],
        prepend_begin=config.data.prepend_begin, begin_id=prepared.tokenizer.begin_id, pad_id=prepared.tokenizer.pad_id,
    )  # fmt: skip
    seed = run_seeds(config)["init"]
    update = optimizers.make_optimizer(config.optimizer, abstract_params(encoder), config.train.compute_dtype)
    abstract = jax.eval_shape(lambda: initial_state(encoder, update, seed))
    places = sharding.state_shardings(mesh, abstract)
    abstract = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract, places)
    execution = choose_execution(
        config.train.compute_dtype, platform, mesh.size, config.train.rematerialise, kernel,
        sharding.batch_sharding(mesh),
    )  # fmt: skip
    how = masking.make_masking(
        config.masking, encoder.vocab_size, prepared.tokenizer.mask_id, prepared.tokenizer.special_ids
    )
    if jax.process_index() == 0:
        save_config(config, workdir / "config.json")
        if config.model.init_from and not before and (source := source_config(config.model.init_from)):
            storage.write_text(workdir / SOURCE_CONFIG, json.dumps(source, indent=2) + "\n")
    total = _total_steps(config, rows, phases)
    attention, votes = f"attention by {kernel} ({why})", distributed.Votes(mesh)
    return Run(
        config,
        workdir,
        prepared,
        encoder,
        execution,
        attention,
        how,
        mesh,
        phases,
        rows,
        total,
        update,
        abstract,
        votes,
    )


def _prepared_data(config: Any, workdir: Path) -> Prepared:
    """The data of a run: made or found by its first process, while the others wait.

    Those that see its disk read them there; on other machines they are made again, of the same text.
    """
    made: list[Prepared] = []

    def make() -> list[str]:
        made.append(_data_of_workdir(config, workdir))
        return [str(made[0].directory), made[0].fingerprint]

    directory, fingerprint = distributed.from_first(make)
    if made:
        return made[0]
    if Path(directory).is_dir() and (prepared := open_prepared(directory)).fingerprint == fingerprint:
        return prepared
    if (prepared := prepare(config)).fingerprint != fingerprint:
        raise UserError(
            f"process {jax.process_index()} finds another text at data.path than the first; give all of them the same, "
            "or a data.cache that all of them see"
        )
    return prepared


def _data_of_workdir(config: Any, workdir: Path) -> Prepared:
    """The data that this work directory was begun with, or those that the config names; keeps its tokenizer."""
    record = workdir / "data.json"
    known = _known_data(record)
    if known and Path(known["directory"]).is_dir():
        prepared = open_prepared(Path(known["directory"]))
        if prepared.fingerprint == known["fingerprint"]:
            return prepared
    prepared = prepare(config)
    if known and prepared.fingerprint != known["fingerprint"]:
        raise UserError(
            f"the text at data.path is no longer what {workdir} was trained on; bring it back, or use a new --workdir"
        )
    counts = np.sum([store.counts for store in prepared.train], axis=0)
    content = {"directory": str(prepared.directory), "fingerprint": prepared.fingerprint}
    try:
        prepared.tokenizer.save(workdir / "tokenizer")
        np.save(workdir / "token_counts.npy", counts, allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"cannot write {workdir}: {error.strerror}; mend that and run the same command again"
        ) from error
    storage.write_text(record, json.dumps(content | {"crc32": record_crc32(content)}))
    return prepared


def _known_data(record: Path) -> dict[str, str] | None:
    """Returns what data.json says, None where it is not there or damaged: the data are then found by the config."""
    if not record.exists():
        return None
    try:
        known = json.loads(record.read_bytes())
        content = {name: str(known[name]) for name in ("directory", "fingerprint")}
        whole = known.get("crc32") in (None, record_crc32(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if whole:
        return content
    logging.getLogger("jaxlm").warning("%s is damaged, and is written anew", record)
    return None


def _total_steps(config: Any, rows: TrainRows, phases: tuple[Phase, ...]) -> int | None:
    """How many updates train.steps, epochs or tokens mean; None for minutes."""
    train = config.train
    if train.minutes is not None:
        return None
    if train.steps is not None:
        return train.steps
    if train.tokens is None and train.epochs is None:
        raise UserError("one of train.steps, train.epochs, train.tokens and train.minutes must say when the run ends")
    length, batch = phases[-1].sequence_length, phases[-1].batch_size
    wanted = train.tokens if train.tokens is not None else train.epochs * rows.tokens_per_epoch
    earlier = [(phase.steps or 0, phase.sequence_length * phase.batch_size) for phase in phases[:-1]]
    wanted -= sum(steps * tokens for steps, tokens in earlier)
    return max(sum(steps for steps, _ in earlier) + math.ceil(wanted / (length * batch)), 1)
