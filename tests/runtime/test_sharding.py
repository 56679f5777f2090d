import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.heads import abstract_params
from jaxlm.model.presets import PRESETS
from jaxlm.optimizer.optimizers import make_optimizer
from jaxlm.runtime.parameter_paths import param_path
from jaxlm.runtime.sharding import (
    PARAM_RULES,
    _by_slice,
    _slices_of,
    batch_sharding,
    check_batch,
    local_parts,
    make_mesh,
    param_shardings,
    replicated,
    shard_batch,
    state_shardings,
)


def mesh_of(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def params_of(preset="", **changes):
    config = default_config().model
    config.update(PRESETS[preset] if preset else {"vocab_size": 64})
    config.update(changes)
    return abstract_params(encoder_config(config))


def by_path(tree):
    return {param_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def first_rule(path):
    return next((number for number, (pattern, _) in enumerate(PARAM_RULES) if re.search(pattern, path)), None)


def test_rules_cover_every_parameter_and_each_is_used():
    trees = [params_of(preset, layers=2) for preset in PRESETS] + [params_of(tied_output=False, embedding_width=32)]
    used = {first_rule(path) for tree in trees for path in by_path(tree)}
    assert used == set(range(len(PARAM_RULES)))


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(UserError, match=r"no rule of PARAM_RULES in sharding.py covers encoder/layers_0/router"):
        param_shardings(mesh_of(1, 2, 2), {"encoder": {"layers_0": {"router": np.zeros((4, 4))}}})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_large_parameter_is_split_by_fsdp_and_products_by_tensor(preset):
    params = params_of(preset, layers=2)
    shardings = by_path(param_shardings(mesh_of(1, 2, 2), params))
    params = by_path(params)
    for path, leaf in params.items():
        axes = tuple(shardings[path].spec) + (None,) * (leaf.ndim - len(shardings[path].spec))
        if leaf.ndim == 2 and leaf.size > 2**16:
            assert "fsdp" in axes, path
        if re.search("(query|key|value|up|gate)/kernel", path):
            assert axes == ("fsdp", "tensor")  # columns here and rows in the next product: no gather between them
        if re.search("(output|down)/kernel", path):
            assert axes == ("tensor", "fsdp")
        assert shardings[path].shard_shape(leaf.shape)  # raises if the axes do not divide


def test_a_dimension_that_is_not_divisible_by_its_axis_stays_whole():
    params = params_of(vocab_size=51, width=36, heads=2, feed_forward_width=20, layers=1)
    shardings = by_path(param_shardings(mesh_of(1, 8, 4), params))
    assert shardings["encoder/embeddings/token/embedding"].spec == PartitionSpec(None, None)  # 51 x 36
    assert shardings["encoder/layers_0/attention/query/kernel"].spec == PartitionSpec(None, "tensor")  # 36 x 36
    assert shardings["encoder/layers_0/feed_forward/down/kernel"].spec == PartitionSpec("tensor", None)  # 20 x 36
    assert shardings["head/bias"].spec == PartitionSpec(None)


def with_classification_head(classes):
    shapes = {
        "kernel": jax.ShapeDtypeStruct((64, classes), "float32"),
        "bias": jax.ShapeDtypeStruct((classes,), "float32"),
    }
    return {"encoder": params_of(width=64, layers=1)["encoder"], "head": shapes}


def test_a_classification_head_is_split_over_tensor_only_if_its_classes_divide():
    for classes, axis in ((2, None), (8, "tensor")):
        shardings = param_shardings(mesh_of(1, 1, 4), with_classification_head(classes))["head"]
        assert shardings["kernel"].spec == PartitionSpec("fsdp", axis)
        assert shardings["bias"].spec == PartitionSpec(axis)
        assert shardings["kernel"].shard_shape((64, classes)) == (64, 2)
        assert shardings["bias"].shard_shape((classes,)) == (2,)
    assert param_shardings(mesh_of(1, 4, 1), with_classification_head(2))["head"]["kernel"].shard_shape((64, 2)) == (
        16,
        2,
    )


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_the_optimizer_state_of_a_classification_head_follows_it(name):
    settings = default_config().optimizer
    settings.name = name
    params = with_classification_head(2)
    state = {"params": params, "opt_state": jax.eval_shape(make_optimizer(settings, params).init, params)}
    shardings, shapes = by_path(state_shardings(mesh_of(1, 2, 4), state)), by_path(state)
    for leaf, shape, spec in (("kernel", (64, 2), ("fsdp", None)), ("bias", (2,), (None,))):
        followers = [path for path in shardings if path.endswith(f"head/{leaf}")]
        assert len(followers) == 3  # the parameter and Adam's two moments
        for path in followers:
            assert (shapes[path].shape, shardings[path].spec) == (shape, PartitionSpec(*spec))


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_optimizer_state_follows_its_parameter(name):
    settings = default_config().optimizer
    settings.name = name
    params = params_of("bert_base", layers=2)
    state = {"params": params, "opt_state": jax.eval_shape(make_optimizer(settings, params).init, params)}
    shardings = by_path(state_shardings(mesh_of(1, 2, 2), state))
    expected = by_path(param_shardings(mesh_of(1, 2, 2), params))
    assert {path: shardings[f"params/{path}"] for path in expected} == expected
    params, state = by_path(params), by_path(state)
    followers = dict.fromkeys(params, 0)
    for path, leaf in state.items():
        if not path.startswith("opt_state/"):
            continue
        owners = [name for name in params if path.endswith("/" + name)]
        if owners:
            assert leaf.shape == params[owners[0]].shape
            assert shardings[path] == expected[owners[0]]
            followers[owners[0]] += 1
        else:  # counters, and Muon's coefficients
            assert leaf.size <= 3
            assert shardings[path].spec == PartitionSpec()
    muon = {path for path in params if "/layers_" in path and path.endswith("kernel")} if name == "muon" else set()
    assert followers == {path: 1 if path in muon else 2 for path in params}


def test_batch_is_split_over_data_and_fsdp():
    assert batch_sharding(mesh_of(2, 2, 2)).shard_shape((8, 5)) == (2, 5)
    assert replicated(mesh_of(2, 2, 2)).shard_shape((8, 5)) == (8, 5)


def mesh_settings(**changes):
    settings = default_config().mesh
    settings.update(changes)
    return settings


def test_mesh_takes_all_devices():
    here = len(jax.devices())
    for data in (-1, here):
        mesh = make_mesh(mesh_settings(data=data))
        assert dict(mesh.shape) == {"data": here, "fsdp": 1, "tensor": 1}
        assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "changes", [{"data": 3}, {"fsdp": 3}, {"tensor": 5}, {"data": -1, "fsdp": 2, "tensor": 4}, {"data": 0}], ids=str
)
def test_a_mesh_of_another_number_of_devices_is_rejected(monkeypatch, changes):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 4)
    with pytest.raises(UserError) as error:
        make_mesh(mesh_settings(**changes))
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | changes
    for name, size in sizes.items():
        assert f"mesh.{name}={size}" in str(error.value)
    assert "must multiply to the number of devices, but 4 devices are available" in str(error.value)


@pytest.mark.parametrize(
    ("batch", "accumulate", "good"), [(8, 1, True), (8, 2, True), (6, 1, False), (12, 2, False), (8, 4, False)]
)
def test_a_batch_must_be_divisible_by_devices_times_micro_batches(batch, accumulate, good):
    mesh = mesh_of(2, 2, 3)  # tensor does not split the batch
    if good:
        check_batch(mesh, batch, accumulate)
        return
    with pytest.raises(UserError, match=rf"train.batch_size={batch} is not divisible by the 4 devices") as error:
        check_batch(mesh, batch, accumulate)
    assert (f"{accumulate} micro-batches" in str(error.value)) == (accumulate > 1)


def devices_of(slices, processes=(0,), platform="tpu"):
    return [
        SimpleNamespace(
            id=number, platform=platform, slice_index=slices[number], process_index=processes[number % len(processes)]
        )
        for number in range(len(slices))
    ]


def test_devices_are_grouped_by_their_slice():
    groups = _by_slice(devices_of([1, 0, 1, 0]), 2)
    assert [[device.id for device in group] for group in groups] == [[1, 3], [0, 2]]
    assert _slices_of(devices_of([1, 0, 1, 0])) == 2
    assert _slices_of(devices_of([0, 1], platform="gpu")) == 1  # on a GPU it is the machine


def test_neighbouring_processes_form_a_slice_if_devices_report_none():
    groups = _by_slice(devices_of([0] * 4, (3, 1, 0, 2), "cpu"), 2)
    assert [[device.process_index for device in group] for group in groups] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("slices", "wanted"), [([0, 0, 1], 2), ([0, 0, 1, 1], 4)])
def test_slices_that_the_devices_do_not_form_are_rejected(slices, wanted):
    with pytest.raises(UserError, match=f"mesh.slices={wanted} requires {wanted} slices of equal size"):
        _by_slice(devices_of(slices), wanted)


def test_slices_split_the_batch_too():
    axes = ("slice", "data", "fsdp", "tensor")
    mesh = jax.sharding.AbstractMesh((2, 2, 1, 3), axes)
    check_batch(mesh, 8, 2)
    with pytest.raises(UserError, match="not divisible by the 4 devices"):
        check_batch(mesh, 6, 1)
    assert batch_sharding(mesh).shard_shape((8, 5)) == (2, 5)


def test_one_process_holds_all_parts_of_a_batch():
    assert local_parts(make_mesh(mesh_settings())) == (tuple(range(len(jax.devices()))), len(jax.devices()))


def test_a_batch_is_assembled_from_the_rows_of_this_process():
    mesh = make_mesh(mesh_settings())
    size = 2 * len(jax.devices())
    rows = {"tokens": np.arange(size * 3, dtype=np.int32).reshape(size, 3), "weights": np.ones(size, np.float32)}
    batch = shard_batch(mesh, rows)
    for name, array in batch.items():
        assert array.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        assert array.dtype == rows[name].dtype
        np.testing.assert_array_equal(array, rows[name])
