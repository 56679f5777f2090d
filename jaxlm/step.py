"""The training step, and the assembly that train, bench and plan build it from.

The step knows no task: an `Objective` says what a batch holds, how it is prepared and which sums are differentiated.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh

from jaxlm.config import Phase, phases_of
from jaxlm.data.facts import DataFacts
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution, choose_execution
from jaxlm.model.kernels.dispatch import choose_attention
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.table import make_objective
from jaxlm.optimizer.optimizers import stop_frozen_gradients
from jaxlm.optimizer.parameter_rules import frozen_mask
from jaxlm.optimizer.schedules import make_schedule
from jaxlm.optimizer.table import make_update
from jaxlm.optimizer.update import Moment, Update
from jaxlm.runtime import hardware, sharding
from jaxlm.runtime.compiling import compiler_options, initial_options

MASKS, DROPOUT = 0, 1  # the purposes of random bits, folded into the root key first

TrainStep = Callable[[dict, Mapping[str, Array], Array, Array, Mapping[str, Array]], tuple[dict, dict[str, Array]]]


def run_seeds(config: Any) -> dict[str, int]:
    """Returns the seeds of "init", "data" and "mask": train.seed unless they are set."""
    given = {name: config.train[f"{name}_seed"] for name in ("init", "data", "mask")}
    return {name: config.train.seed if seed is None else seed for name, seed in given.items()}


def make_train_step(
    objective: Objective,
    update: Update,
    frozen: Any,
    schedule: Callable[[Array], Array],
    total: float,
    learning_rate: float,
    accumulate: int,
    mask_seed: int,
) -> TrainStep:
    """Returns (state, batch, step, done, knobs) -> (state, metrics), one update; pure, not yet jitted.

    state is {"params", "opt_state"}. batch is the global batch, arrays [B, ...] as `objective.columns` names them. step
    is the number of completed updates (int32), done the same in the schedule's unit (float32), in which the run has the
    length `total`, knobs the objective's scalars. Masks and dropout of row b depend on (mask_seed, step, b) alone,
    whatever the mesh or the micro-batches. `frozen` is a tree of bools, True where a parameter is not trained.
    """

    def train_step(state: dict, batch: Mapping[str, Array], step: Array, done: Array, knobs: Mapping[str, Array]):
        row = jnp.arange(batch["tokens"].shape[0])
        root = jax.random.key(mask_seed)
        with jax.named_scope("masking"):  # performance/profile.py sorts kernels by these scopes
            mask_keys, dropout_keys = (
                jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.fold_in(root, use), step), row)
                for use in (MASKS, DROPOUT)
            )
            prepared = objective.prepare(batch, mask_keys, knobs)
            seeds = jax.vmap(lambda key: jax.random.bits(key, (2,)))(dropout_keys) if objective.dropout else None
            # One mean over the whole global batch: the sum over all predictions divided by their number.
            weight = jnp.maximum(prepared.weight, 1)

        def share_of_loss(params: dict, rows: Any) -> tuple[Array, dict[str, Array]]:
            rows, seeds = rows
            params = stop_frozen_gradients(frozen, params)
            with jax.named_scope("loss"):
                sums = objective.sums(params, rows, seeds)
            return sums["loss"] / weight, sums

        weights = update.weights(state["params"], state["opt_state"])
        gradient = jax.grad(share_of_loss, has_aux=True)
        rows = (prepared.rows, seeds)
        if accumulate == 1:
            grads, sums = gradient(weights, rows)
        else:
            # Row b goes to micro-batch b % accumulate, so that a batch split over devices stays where it is.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)
            first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, weights, rows))
            add = lambda sums, part: (jax.tree.map(jnp.add, sums, gradient(weights, part)), None)  # noqa: E731
            (grads, sums), _ = lax.scan(add, first, parts)

        with jax.named_scope("optimizer"):
            rate, moment = learning_rate * schedule(done), Moment(step, (done + 1) / total)
            params, opt_state = update.apply(grads, state["opt_state"], state["params"], rate, moment)
            gradient_norm = optax.global_norm(grads)
        metrics = (
            objective.report({**sums, **prepared.counts})
            | update.metrics(opt_state)
            | {
                "gradient_norm": gradient_norm,
                "learning_rate": rate,
                "padding": (batch["segment_ids"] == 0).sum(),
            }
        )
        return {"params": params, "opt_state": opt_state}, metrics

    return train_step


def initial_state(objective: Objective, update: Update, seed: int) -> dict:
    """Returns {"params", "opt_state"} before the first update; pure, to be jitted with shardings or only traced."""
    params = objective.init(seed)
    return {"params": params, "opt_state": update.init(params)}


@dataclasses.dataclass(frozen=True, eq=False)
class Assembly:
    """What the steps of a run are made of: the model on its mesh, each phase's objective, and the update.

    The mesh may consist of described devices, and the platform may differ from this machine's: `plan` compiles for
    chips that are not attached.
    """

    config: Any
    encoder: EncoderConfig
    execution: Execution
    attention: str  # the attention kernel and why it was chosen, for the log
    mesh: Any
    platform: str
    phases: tuple[Phase, ...]
    objectives: tuple[Objective, ...]  # one for each phase
    update: Update
    abstract_state: dict  # {"params", "opt_state"}: shapes, dtypes and shardings

    @functools.cached_property
    def state_shardings(self) -> dict:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    @functools.cached_property
    def least_bytes(self) -> int:
        """A lower bound of the memory of a training step on each device: the state, the gradients, the batch, and one
        hidden state of each token in a micro-batch."""
        state = sum(_bytes_on_device(leaf) for leaf in jax.tree.leaves(self.abstract_state))
        gradients = sum(_bytes_on_device(leaf) for leaf in jax.tree.leaves(self.abstract_state["params"]))
        steps = []
        for number, phase in enumerate(self.phases):
            batch = sum(_bytes_on_device(leaf) for leaf in self.abstract_arguments(number)[1].values())
            tokens = phase.batch_size * phase.sequence_length // (phase.accumulate * self.mesh.size)
            steps.append(batch + 2 * tokens * self.encoder.width)
        return state + gradients + max(steps)

    def fresh_state(self) -> dict:
        """Returns the state before the first update, with fresh parameters, on the mesh.

        Raises UserError if a step cannot fit into the memory.
        """
        hardware.check_memory(
            self.least_bytes,
            f"training with train.batch_size={self.config.train.batch_size} and"
            f" data.sequence_length={self.config.data.sequence_length}",
            "lower them or the sizes of the model, raise train.accumulate, or use more devices",
        )
        initial = functools.partial(initial_state, self.objectives[0], self.update, run_seeds(self.config)["init"])
        options = initial_options(self.platform)
        return jax.jit(initial, out_shardings=self.state_shardings, compiler_options=options)()

    def started_from(self, params: dict) -> dict:
        """Returns the state before the first update, with these parameters, which are on the mesh."""
        options = initial_options(self.platform)
        init = jax.jit(self.update.init, out_shardings=self.state_shardings["opt_state"], compiler_options=options)
        return {"params": params, "opt_state": init(params)}

    def train_step(self, number: int, total: float) -> TrainStep:
        """Returns the step of phase `number` under a schedule of length `total`, in updates or clock.TIME_UNITS."""
        phase = self.phases[number]
        return make_train_step(
            self.objectives[number],
            self.update,
            frozen_mask(self.config.optimizer, self.abstract_state["params"]),
            make_schedule(self.config.schedule, total),
            total,
            phase.learning_rate,
            phase.accumulate if self.objectives[number].additive else 1,  # such an objective has chunks of its own
            run_seeds(self.config)["mask"],
        )

    def lower(self, step: Callable, *arguments: Any) -> Any:
        """Returns the step (state, *inputs) -> (state, outputs) lowered for these arguments, arrays or shapes.

        The compiled step reuses the memory of the old state and returns the new one with the same shardings.
        """
        return jax.jit(step, donate_argnums=0, out_shardings=(self.state_shardings, None)).lower(*arguments)

    def compile(self, lowered: Any, **options: Any) -> Any:
        """Returns the compiled step; `options` go beside those of `compiler_options`."""
        return lowered.compile(compiler_options(self.platform) | options)

    def abstract_arguments(self, number: int) -> tuple:
        """Returns the shapes, dtypes and shardings of (state, batch, step, done, knobs) in phase `number`."""
        phase, objective = self.phases[number], self.objectives[number]
        rows, whole = sharding.batch_sharding(self.mesh), sharding.replicated(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct((phase.batch_size, *column.shape), column.dtype, sharding=rows)
            for name, column in objective.columns(phase.sequence_length).items()
        }
        scalar = functools.partial(jax.ShapeDtypeStruct, (), sharding=whole)
        knobs = {name: scalar(dtype=np.float32) for name in objective.knobs(0.0)}
        return self.abstract_state, batch, scalar(dtype=np.int32), scalar(dtype=np.float32), knobs


def _bytes_on_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Returns the size of the part of an array that each device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def assemble(config: Any, encoder: EncoderConfig, facts: DataFacts, mesh: Mesh | Any, platform: str) -> Assembly:
    """Returns the assembly of a config whose train.compute_dtype is resolved. Raises UserError for what does not fit.

    `encoder` is the architecture with its final vocabulary; `mesh` may be abstract.
    """
    dtype = config.train.compute_dtype
    kernel, why = choose_attention(config.train.attention, encoder, dtype, platform, mesh)
    execution = choose_execution(
        dtype, platform, mesh.size, config.train.rematerialise, kernel, sharding.batch_sharding(mesh)
    )
    phases = phases_of(config)
    objectives = tuple(make_objective(config, phase, encoder, execution, facts) for phase in phases)
    params = jax.eval_shape(lambda: objectives[0].init(0))
    update = make_update(config, params, dtype)
    abstract = {"params": params, "opt_state": jax.eval_shape(update.init, params)}  # as of `initial_state`
    shardings = sharding.state_shardings(mesh, abstract)
    abstract = jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract, shardings
    )
    return Assembly(
        config,
        encoder,
        execution,
        f"attention by {kernel} ({why})",
        mesh,
        platform,
        phases,
        objectives,
        update,
        abstract,
    )
