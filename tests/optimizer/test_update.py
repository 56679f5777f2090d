"""Running averages of parameters: their values, what is frozen, where they are stored, and that resuming is exact."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.config import default_config
from jaxlm.optimizer.table import make_update
from jaxlm.optimizer.update import Moment, averaged, plain
from jaxlm.run import set_up
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.runtime.parameter_paths import param_path
from jaxlm.runtime.run_log import read_metrics
from jaxlm.runtime.sharding import make_mesh, param_shardings, state_shardings
from jaxlm.trainer import train
from jaxlm.use.loading import load_trained

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def flatten(tree):
    return {param_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def moment(step, total=10):
    return Moment(jnp.int32(step), jnp.float32((step + 1) / total))


def parameters(seed=0):
    random = np.random.default_rng(seed)
    shapes = {f"layers_{number}": {"up": {"kernel": (4, 3), "bias": (3,)}} for number in range(2)}
    return jax.tree.map(
        lambda shape: random.normal(size=shape).astype(np.float32),
        {"encoder": shapes, "head": {"kernel": (3, 2)}},
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def config_of(**settings):
    config = default_config()
    for key, value in settings.items():
        section, _, name = key.partition("_")
        config[section][name] = value
    return config


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_follows_its_recurrence_and_gradients_are_taken_at_the_trained_weights(decay):
    params = parameters()
    frozen = jax.tree.map(lambda _: False, params)
    update = averaged(plain(optax.scale(-1.0)), decay, frozen)
    state, mean, own = update.init(params), flatten(params), flatten(params)
    for step in range(6):
        gradients = parameters(step + 1)
        params, state = jit(update.apply)(gradients, state, params, 0.1, moment(step))
        own = {path: value - np.float32(0.1) * flatten(gradients)[path] for path, value in own.items()}
        share = 1 - min(decay, (1 + step) / (10 + step))
        mean = {path: value + share * (own[path] - value) for path, value in mean.items()}
        for path in own:
            np.testing.assert_allclose(flatten(update.weights(params, state))[path], own[path], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(flatten(params)[path], mean[path], rtol=1e-5, atol=1e-6)


def test_without_averaging_and_pruning_the_state_is_that_of_the_optimizer():
    params = parameters()
    update = make_update(default_config(), params)
    assert {path.partition("/")[0] for path in flatten(update.init(params))} == {"1"}  # of the chain, as in checkpoints
    assert update.weights(params, ()) is params
    assert update.notes == ()


def test_frozen_parameters_have_no_average_and_keep_their_bits():
    params = parameters()
    params["encoder"]["layers_0"]["up"]["bias"][:] = -0.0
    update = make_update(config_of(optimizer_average=0.9, optimizer_freeze=("layers:0",)), params)
    state, before = update.init(params), flatten(params)
    assert not [path for path in flatten(state["trained"]) if "layers_0" in path]
    for step in range(3):
        params, state = jit(update.apply)(parameters(step + 1), state, params, 0.1, moment(step))
    for path, value in flatten(params).items():
        assert (value.tobytes() == before[path].tobytes()) == ("layers_0" in path), path
    assert (flatten(update.weights(params, state))["encoder/layers_0/up/bias"] == 0).all()


def test_the_trained_parameters_are_sharded_as_their_averages():
    params = parameters()
    update = make_update(config_of(optimizer_average=0.9), params)
    mesh = make_mesh(default_config().mesh)
    state = jax.eval_shape(lambda: {"params": params, "opt_state": update.init(params)})
    places = {
        param_path(path): place for path, place in jax.tree_util.tree_leaves_with_path(state_shardings(mesh, state))
    }
    own = {
        param_path(path): place for path, place in jax.tree_util.tree_leaves_with_path(param_shardings(mesh, params))
    }
    assert {path: places[f"opt_state/trained/{path}"] for path in own} == own


@pytest.mark.slow
def test_a_pruned_and_averaged_run_saves_what_it_evaluates_and_resumes_exactly(mini, tmp_path, capsys):
    settings = (
        "train.steps=6", "optimizer.average=0.9", "optimizer.freeze=embeddings", "pruning.sparsity=0.6",
        "pruning.every=1", "pruning.end=1", "checkpoint.every=3", "checkpoint.keep=9", "schedule.name=constant",
        "schedule.warmup=0", "evaluation.rows=16", "logging.every=1",
    )  # fmt: skip
    whole = train(mini(*settings), tmp_path / "run")
    shown = capsys.readouterr().out
    assert "have running averages of the parameters, with a decay of 0.9" in shown
    assert "weights (60.0%) are pruned by magnitude" in shown

    run = set_up(mini(*settings), tmp_path / "run")
    saved = Checkpoints(tmp_path / "run" / "checkpoints").restore(run.assembly.abstract_state).state
    evaluated, trained = flatten(saved["params"]), flatten(run.assembly.update.weights(**of_update(saved)))
    loaded, fresh = flatten(load_trained(tmp_path / "run").params), flatten(run.fresh_state()["params"])
    kernels = [path for path in loaded if "/layers_" in path and path.endswith("kernel")]
    size = sum(loaded[path].size for path in kernels)
    for found in (loaded, trained):
        assert sum(int((found[path] == 0).sum()) for path in kernels) == round(0.6 * size)
    for path, value in loaded.items():
        assert value.tobytes() == evaluated[path].tobytes()
        assert (value.tobytes() == trained[path].tobytes()) == path.startswith("encoder/embeddings/"), path
        assert (value.tobytes() == fresh[path].tobytes()) == path.startswith("encoder/embeddings/"), path
    sparsity = [event["sparsity"] for event in read_metrics(tmp_path / "run") if event["kind"] == "train"]
    assert sparsity == sorted(sparsity)
    assert sparsity[0] > 0

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if it had been killed after step 3, while pruning
    assert train(mini(*settings), tmp_path / "run") == whole


def of_update(state):
    return {"params": state["params"], "state": state["opt_state"]}
