"""The teacher of a distillation: its outputs on the training examples, computed once, before the student trains.

The teacher reads the texts with its own tokenizer and head, whatever vocabulary the student has; its outputs become
columns of the student's examples.
"""

import contextlib
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import init_from
from jaxlm.config import config_from_dict, config_to_dict, load_config
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.data.task_data import TaskData
from jaxlm.data.tasks.table import KINDS, encoder_for
from jaxlm.errors import UserError
from jaxlm.evaluation.task_sets import predict_examples
from jaxlm.huggingface import task_heads
from jaxlm.huggingface.conversion import longest_text
from jaxlm.init_from import Start
from jaxlm.objectives.distillation import OUTPUTS, STATES
from jaxlm.runtime import sharding
from jaxlm.runtime.checkpoint import find_step, split_step
from jaxlm.runtime.checksums import params_sha256
from jaxlm.runtime.compiling import jit
from jaxlm.step import Assembly, assemble
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.typed import listed


def find_teacher(config: Any) -> Start | None:
    """Returns the model that task.teacher names, at its best checkpoint; None if the setting is empty.

    Raises UserError if it was not fine-tuned for the same objective.
    """
    name, objective = config.task.teacher, config.train.objective
    if not name:
        return None
    wanted = f"a work directory or a Hugging Face directory of a model that was fine-tuned for {objective}"
    if not (split_step(Path(name).expanduser())[0] / "config.json").is_file():
        raise UserError(f"task.teacher={name} has no config.json; expected {wanted}")
    teacher = init_from.resolve(name)
    if teacher.objective not in KINDS:
        raise UserError(f"task.teacher={name} was not fine-tuned, so it has no answers to learn from; name {wanted}")
    one_output = teacher.source and task_heads.one_output(teacher.objective, objective)
    if teacher.objective != objective and not one_output:
        raise UserError(
            f"task.teacher={name} was fine-tuned for train.objective={teacher.objective}, not {objective}; name another"
        )
    if teacher.source is None and teacher.step is None:
        with contextlib.suppress(UserError):  # no checkpoint was evaluated: the newest one
            teacher = dataclasses.replace(teacher, step=find_step(teacher.directory / "checkpoints", "best"))
    return teacher


def with_teacher(data: TaskData, teacher: Start, config: Any, width: int, mesh: Any) -> TaskData:
    """Returns the data with the teacher's outputs as columns of the training examples.

    With task.teacher_states, its pooled states are a column too, in `width` dimensions, the student's: if it is wider,
    their principal components. Raises UserError if the labels or the widths do not fit.
    """
    order = _order_of_labels(teacher, data.labels, config.task.teacher)
    if config.task.teacher_states and teacher.encoder.width < width:
        raise UserError(
            f"task.teacher_states: the teacher's width, {teacher.encoder.width}, is below that of this model, {width};"
            " set it to 0, or name a wider teacher"
        )
    outputs, states, checksum = _predict(data, teacher, config, mesh)
    columns = {OUTPUTS: outputs[:, order] if order else outputs}
    if config.task.teacher_states:
        columns[STATES] = principal_components(states, width)
    # Of the teacher and not of its outputs, which differ by rounding if the run goes on with other devices.
    digest = hashlib.sha256(f"{data.fingerprint} {checksum}".encode()).hexdigest()[:32]
    train = dataclasses.replace(data.train, columns={**data.train.columns, **columns})
    return dataclasses.replace(data, train=train, fingerprint=digest)


def _order_of_labels(teacher: Start, labels: tuple[str, ...], name: str) -> list[int]:
    """Returns the teacher's output for each label. Raises UserError unless both have the same labels."""
    if task_heads.same_labels(teacher.labels, labels):  # also if Transformers has no names for them
        return list(range(len(labels)))
    index = {label.lower(): number for number, label in enumerate(teacher.labels)}
    if index.keys() != {label.lower() for label in labels}:
        raise UserError(
            f"task.teacher={name} was fine-tuned for other labels ({listed(teacher.labels, 5)}, not"
            f" {listed(labels, 5)}); name another teacher"
            + (", or correct id2label in its config.json" if teacher.source else "")
        )
    return [index[label.lower()] for label in labels]


def _config_of(teacher: Start, config: Any) -> Any:
    """Returns the config that the teacher predicts with: its own, or this run's with what a Hugging Face directory has.

    The texts are read in the columns of this run; the architecture, the tokenizer and the head are the teacher's.
    """
    if teacher.source is None:
        return load_config(str(teacher.directory / "config.json"))
    own = config_from_dict(config_to_dict(config), "config")
    own.model.update(teacher.model)
    own.task.update(head=teacher.head, pooling=teacher.pooling, dropout=None, teacher="", r_drop=0.0)
    longest = longest_text(teacher.source, teacher.encoder)
    own.data.sequence_length = min(longest, own.data.sequence_length)
    return own


def _predict(data: TaskData, teacher: Start, config: Any, mesh: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the teacher's outputs [n, C] and pooled states [n, D] of the training examples, and its checksum."""
    own = _config_of(teacher, config)
    own.evaluation.batch_size = config.evaluation.batch_size or config.train.batch_size
    own.optimizer.update(freeze=(), rate_multipliers=())
    own.pruning.sparsity = 0.0
    own.train.phases = ()
    own.model.rotary_base = teacher.encoder.rotary_base
    tokenizer = load_tokenizer(teacher.tokenizer["path"], teacher.tokenizer.get("words", own.tokenizer.words))
    assembly = assemble(
        own, teacher.encoder, SYNTHETIC_FACTS._replace(labels=teacher.labels), mesh, jax.devices()[0].platform
    )
    given = teacher.params(teacher.encoder, tokenizer, tokenizer)
    if "task_head" not in given:
        raise UserError(
            f"task.teacher={config.task.teacher} has no weights of its head; fetch it again, or name another"
        )
    params = {"encoder": given["encoder"], "head": given["task_head"]}
    checksum = params_sha256(params)
    params = jax.tree.map(_on_mesh, params, assembly.state_shardings["params"])
    encode = KINDS[config.train.objective].encode
    examples = encode(data.train.rows, data.labels, encoder_for(own, tokenizer), config.task)
    found = predict_examples(
        jit(functools.partial(_forward, assembly), out_shardings=sharding.replicated(mesh)),
        params, examples, assembly, False, tokenizer.pad_id,
    )  # fmt: skip
    outputs, states = (np.stack(found[name]).astype(np.float32) for name in ("outputs", "states"))
    return outputs, states, checksum


def _forward(assembly: Assembly, params: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    objective: Any = assembly.objectives[0]
    outputs, states = objective.forward(params, batch)
    return {"outputs": outputs, "states": states}


def _on_mesh(array: np.ndarray, place: Any) -> jax.Array:
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def principal_components(states: np.ndarray, width: int) -> np.ndarray:
    """Returns vectors [n, D] in the `width` <= D directions of largest variance, float32 [n, width].

    They stay as they are if D is `width`. The sign of each direction is such that its largest entry is positive.
    """
    if states.shape[1] == width:
        return states
    centered = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    directions = np.linalg.eigh(centered.T @ centered)[1][:, ::-1][:, :width]
    largest = directions[np.abs(directions).argmax(0), np.arange(width)]
    return (centered @ (directions * np.sign(largest))).astype(np.float32)
