"""Pruning: the exact number of weights is 0, whatever Adam does; the least important ones; frozen ones are refused."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.optimizer.pruning import keep_best
from jaxlm.optimizer.table import make_update
from jaxlm.runtime.clock import Clock
from jaxlm.runtime.sharding import make_mesh, param_shardings, state_shardings
from jaxlm.trainer import _score
from tests.optimizer.test_update import flatten, moment, parameters

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile
MATRICES = [f"encoder/layers_{n}/up/kernel" for n in range(2)]


def config_of(sparsity=0.5, average=0.0, freeze=(), **pruning):
    config = default_config()
    config.pruning.update(sparsity=sparsity, **pruning)
    config.optimizer.update(average=average, freeze=freeze)
    return config


def zeros_in(params):
    found = flatten(params)
    return sum(int((found[path] == 0).sum()) for path in MATRICES)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_adam_does_not_revive_pruned_weights(method, average):
    params = parameters()
    update = make_update(config_of(0.5, average, method=method, end=0.0), params)
    state, step, zero = update.init(params), jit(update.apply), []
    for number in range(10):
        params, state = step(parameters(number + 1), state, params, 0.1, moment(number))
        assert zeros_in(params) == zeros_in(update.weights(params, state)) == 12
        zero.append([flatten(params)[path] == 0 for path in MATRICES])
        assert all((now == first).all() for now, first in zip(zero[-1], zero[0], strict=True))
    assert float(update.metrics(state)["sparsity"]) == 0.5
    assert not (flatten(params)["head/kernel"] == 0).any()
    moments = [value for path, value in flatten(state).items() if path.endswith("mu/" + MATRICES[0])]
    assert (moments[0] != 0).all()  # what would have moved them


def test_the_smallest_weights_of_all_matrices_go():
    params = parameters()
    params["encoder"]["layers_0"]["up"]["kernel"] *= 100
    update = make_update(config_of(0.5, end=0.0), params)
    zero = jax.tree.map(np.zeros_like, params)
    params, _ = jit(update.apply)(zero, update.init(params), params, 0.0, moment(0))
    found = flatten(params)
    assert [int((found[path] == 0).sum()) for path in MATRICES] == [0, 12]


def test_movement_keeps_what_training_moves_away_from_zero():
    params = parameters()
    update = make_update(config_of(0.5, method="movement", end=0.0), params)
    signs = np.random.default_rng(5).permutation([1.0] * 12 + [-1.0] * 12)
    gradients = jax.tree.map(np.zeros_like, params)
    for number in range(2):  # a gradient of the weight's sign moves it towards 0
        kernel = params["encoder"][f"layers_{number}"]["up"]["kernel"]
        part = signs[12 * number : 12 * number + 12].reshape(4, 3)
        gradients["encoder"][f"layers_{number}"]["up"]["kernel"] = np.sign(kernel) * part.astype(np.float32)
    new, _ = jit(update.apply)(gradients, update.init(params), params, 0.0, moment(0))
    for number in range(2):
        part = signs[12 * number : 12 * number + 12].reshape(4, 3)
        np.testing.assert_array_equal(new["encoder"][f"layers_{number}"]["up"]["kernel"] == 0, part > 0)


def test_sparsity_grows_by_the_schedule_and_is_exact_at_its_end():
    params = parameters()
    update = make_update(config_of(0.75, begin=0.2, end=0.8, every=2), params)
    state, step, found = update.init(params), jit(update.apply), []
    for number in range(10):
        params, state = step(parameters(number + 1), state, params, 0.1, moment(number))
        found.append(zeros_in(params))
    # The share of the run is 0.3, 0.5, 0.7 at the steps 2, 4, 6, and 0.8 at step 7.
    wanted = [int(18 * (1 - (1 - share) ** 3)) for share in (1 / 6, 1 / 2, 5 / 6)]
    assert found == [0, 0, wanted[0], wanted[0], wanted[1], wanted[1], wanted[2], 18, 18, 18]


@pytest.mark.parametrize("pruned", [0, 1, 7, 12, 23, 24])
def test_the_number_is_exact_also_among_equal_scores(pruned):
    random = np.random.default_rng(0)
    scores = {"a": random.integers(0, 3, (3, 4)).astype(np.float32), "b": np.float32(random.integers(-2, 2, (12,)))}
    kept = {name: jnp.ones(score.shape, bool) for name, score in scores.items()}
    keep = jit(keep_best)
    few = keep(scores, kept, jnp.int32(min(pruned, 5)))
    new = keep(jax.tree.map(lambda x: -x, scores), few, jnp.int32(max(pruned, 5)))  # what is pruned stays pruned
    assert all((~few[name] <= ~new[name]).all() for name in scores)
    new = keep(scores, kept, jnp.int32(pruned))
    assert sum(int((~one).sum()) for one in new.values()) == pruned
    gone = [score for name in scores for score in scores[name][~np.asarray(new[name])]]
    left = [score for name in scores for score in scores[name][np.asarray(new[name])]]
    assert max(gone, default=-9) <= min(left, default=9)


@pytest.mark.parametrize(("settings", "message"), [
    ({"parameters": ("layer_0",)}, "pruning.parameters: layer_0 matches no matrix; expected embeddings, encoder"),
    ({"parameters": ("bias$",)}, "bias$ matches no matrix"),
    ({"parameters": ("layers:0-5",)}, "layers:0-5: the model's layers are 0 to 1"),
    ({"parameters": ()}, "pruning.parameters is empty"),
    ({"freeze": ("layers:1",)}, "encoder/layers_1/up/kernel is frozen by optimizer.freeze and cannot be pruned"),
    ({"sparsity": 0.001}, "pruning.sparsity=0.001 prunes none of 24 weights"),
    ({"begin": 0.6}, "pruning.begin=0.6 is after pruning.end=0.5"),
])  # fmt: skip
def test_what_cannot_be_pruned_is_refused(settings, message):
    with pytest.raises(UserError) as error:
        make_update(config_of(**settings), parameters())
    assert message in str(error.value)


def test_a_checkpoint_may_be_the_best_only_once_it_is_as_sparse_as_stated():
    update = make_update(config_of(average=0.9, end=0.4), parameters())
    assert update.complete_from == 0.4
    best = Evaluator("dev", 1, lambda *_: {}, lambda *_: "", selects="accuracy", higher_is_better=True)
    run = SimpleNamespace(evaluators=[best], assembly=SimpleNamespace(update=update))
    clock = Clock(None, 10, 0.0, False)
    scores = [_score(run, clock, step, {"dev": {"accuracy": 0.5}}) for step in (3, 4, 10)]
    assert scores == [None, 0.5, 0.5]
    assert _score(run, clock, 10, {}) is None


def test_the_masks_are_sharded_as_their_matrices():
    params = parameters()
    update = make_update(config_of(method="movement"), params)
    state = jax.eval_shape(lambda: {"params": params, "opt_state": update.init(params)})
    mesh = make_mesh(default_config().mesh)
    places, own = state_shardings(mesh, state), param_shardings(mesh, params)
    for part in ("kept", "movement"):
        assert (
            places["opt_state"][part]["encoder"]["layers_0"]["up"]["kernel"]
            == (own["encoder"]["layers_0"]["up"]["kernel"])
        )
