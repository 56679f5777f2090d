"""Checkpoints are atomic and verified, load on any mesh, and at least one intact one is always kept."""

import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.errors import UserError
from jaxlm.runtime import checkpoint_files
from jaxlm.runtime.checkpoint import Checkpoints, NonFinite, restore_params
from jaxlm.runtime.checksums import checksums, params_sha256

ROOT = Path(__file__).parents[2]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
ABOUT = {"elapsed_seconds": 1.5, "config": {"train": {"steps": 7}}, "data": "abc"}


def make_state(seed: int = 0, optimizer: optax.GradientTransformation = OPTIMIZER) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embeddings": {"token": {"embedding": jax.random.normal(keys[0], (64, 32))}},
        "layers_0": {"kernel": jax.random.normal(keys[1], (8, 16)), "bias": jax.random.normal(keys[2], (16,))},
    }
    # One update, because moments that are all zero would hide arrays that were exchanged.
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return {"params": params, "opt_state": opt_state}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved_steps(directory: Path) -> list[int]:
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())


def write(directory: Path, steps, **options) -> None:
    checkpoints = Checkpoints(directory, keep=100, **options)
    for step in steps:
        checkpoints.save(step, make_state(step), ABOUT | {"step": step})
    checkpoints.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Steps 10, 20 and 30, each with the state of that seed. Copy it, do not change it."""
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    write(directory, [10, 20, 30])
    return directory


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def data_file(step: Path, part: str) -> Path:
    """Returns the file with the bytes of a part's arrays."""
    return max((step / part).rglob("d/*"), key=lambda path: path.stat().st_size)


def run_python(code: str, *arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


# Saving and restoring


def test_a_restored_state_is_the_saved_one_bit_for_bit_with_its_metadata(written):
    saved = Checkpoints(written).restore(abstract(make_state()))
    assert saved.step == 30
    assert saved.metadata == ABOUT | {"step": 30}
    assert_same(saved.state, make_state(30))


def test_a_given_step_is_restored(written):
    checkpoints = Checkpoints(written)
    assert_same(checkpoints.restore(abstract(make_state()), step=20).state, make_state(20))
    assert checkpoints.read_metadata(10) == ABOUT | {"step": 10}
    with pytest.raises(UserError, match=r"no checkpoint 25 in .*; available: 10, 20, 30"):
        checkpoints.restore(abstract(make_state()), step=25)
    with pytest.raises(UserError, match="checkpoint 25 in"):
        checkpoints.read_metadata(25)


def test_an_absent_directory_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(abstract(make_state())) is None
    assert checkpoints.newest() is None
    assert not (tmp_path / "checkpoints").exists()


def test_relative_directories_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(Path("run/checkpoints"))
    checkpoints.save(1, make_state(), {}, wait=True)
    assert checkpoints.restore(abstract(make_state())).step == 1
    assert restore_params(Path("run/checkpoints"), abstract(make_state()["params"])).step == 1


def test_an_optimizer_without_arrays_can_be_saved(tmp_path):
    state = make_state(optimizer=optax.sgd(0.1))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {}, wait=True)
    assert_same(checkpoints.restore(abstract(state)).state, state)


def test_dtypes_survive(tmp_path):
    values = {"bf16": jnp.bfloat16(1.7), "f16": jnp.ones(3, jnp.float16), "i8": jnp.arange(-3, 3, dtype=jnp.int8)}
    values |= {"bool": jnp.array([True, False]), "u32": jnp.array([2**32 - 1], jnp.uint32), "i32": jnp.int32(-5)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": values}, {}, wait=True)
    assert_same(checkpoints.restore(abstract({"params": values})).state["params"], values)


def test_a_state_that_is_being_saved_may_be_donated(tmp_path):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}}
    expected, overwrite = jax.device_get(state), jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    checkpoints, like = Checkpoints(tmp_path), abstract(state)
    checkpoints.save(1, state, {})
    jax.block_until_ready(overwrite(state))
    assert_same(checkpoints.restore(like).state, expected)


def test_a_checkpoint_names_no_classes(written):
    files = [path for path in (written / "10").rglob("*METADATA*") if path.is_file()]
    text = "".join(path.read_text() for path in files)
    assert len(files) == 3
    assert "optax" not in text
    assert "ScaleByAdam" not in text


def test_saving_a_state_twice_changes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, make_state(1), {"first": True})
    checkpoints.save(5, make_state(1), {"first": False}, wait=True)
    Checkpoints(tmp_path).save(5, make_state(1), {"first": False}, wait=True)
    saved = checkpoints.restore(abstract(make_state()))
    assert saved.metadata == {"first": True}
    assert_same(saved.state, make_state(1))


def test_a_step_is_never_overwritten_and_no_older_one_slipped_in(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(tmp_path, [5, 8])
    with pytest.raises(UserError, match=r"checkpoint 8 cannot be saved in .*: it exists with other values"):
        checkpoints.save(8, make_state(2), {})
    with pytest.raises(UserError, match=r"checkpoint 6 cannot be saved in .*: it is older than checkpoint 8"):
        checkpoints.save(6, make_state(2), {})
    checkpoints.restore(abstract(make_state()), step=5)
    with pytest.raises(UserError, match=r"checkpoint 5 cannot be saved in .*: it exists with other values"):
        checkpoints.save(5, make_state(2), {})
    assert saved_steps(tmp_path) == [5, 8]
    assert_same(checkpoints.restore(abstract(make_state())).state, make_state(8))


def test_training_on_from_an_older_step_sets_the_later_ones_aside(copied, caplog):
    checkpoints = Checkpoints(copied, keep=2)
    checkpoints.restore(abstract(make_state()), step=10)
    checkpoints.save(10, make_state(10), {})  # the same values: nothing to write
    assert saved_steps(copied) == [10, 20, 30]
    checkpoints.save(20, make_state(99), {"branch": 2}, wait=True)
    assert saved_steps(copied) == [10, 20]
    assert sorted(path.name for path in copied.iterdir()) == ["10", "20", "superseded-20", "superseded-30"]
    assert "training continues from checkpoint 10" in caplog.text
    saved = Checkpoints(copied).restore(abstract(make_state()))
    assert (saved.step, saved.metadata) == (20, {"branch": 2})
    assert_same(saved.state, make_state(99))


def test_a_second_branch_does_not_overwrite_what_the_first_set_aside(copied):
    for seed in (1, 2):
        checkpoints = Checkpoints(copied)
        checkpoints.restore(abstract(make_state()), step=10)
        checkpoints.save(20, make_state(seed), {}, wait=True)
    names = sorted(path.name for path in copied.iterdir())
    assert names == ["10", "20", "superseded-20", "superseded-20-again", "superseded-30"]


# What is kept


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in [(1, 5.0), (2, 3.0), (3, None), (4, 4.0), (5, float("nan")), (6, None)]:
        checkpoints.save(step, make_state(), {}, score=score)
    checkpoints.wait()
    assert saved_steps(tmp_path) == [2, 5, 6]
    later = Checkpoints(tmp_path, keep=1)  # reads the scores from disk
    later.save(7, make_state(), {}, score=3.5, wait=True)
    assert saved_steps(tmp_path) == [2, 7]
    plain = Checkpoints(tmp_path, keep=1, keep_best=False)
    plain.save(8, make_state(), {}, wait=True)
    assert saved_steps(tmp_path) == [8]


def scored(directory: Path, scores: dict[int, float | None], **options) -> list[int]:
    """Saves steps with scores, and returns the steps that are kept."""
    checkpoints = Checkpoints(directory, **options)
    for step, score in scores.items():
        checkpoints.save(step, {"params": {"w": jnp.ones(2)}}, {}, score=score)
    checkpoints.close()
    return saved_steps(directory)


def test_the_highest_score_is_kept_where_higher_is_better(tmp_path):
    nan, infinity = float("nan"), float("inf")
    accuracies = {1: 0.5, 2: 0.8, 3: 0.9, 4: nan, 5: infinity, 6: 0.7, 7: 0.6}
    assert scored(tmp_path / "up", accuracies, keep=1, higher_is_better=True) == [3, 7]
    assert scored(tmp_path / "down", accuracies, keep=1) == [1, 7]
    assert scored(tmp_path / "up", {8: 0.85}, keep=1, higher_is_better=True) == [3, 8]
    assert scored(tmp_path / "up", {9: 0.95}, keep=1, higher_is_better=True) == [9]
    assert scored(tmp_path / "none", {1: nan, 2: None, 3: nan}, keep=1, higher_is_better=True) == [3]


def test_scores_for_the_other_direction_are_ignored(tmp_path):
    assert scored(tmp_path, {1: 9.0, 2: 2.0, 3: 3.0}, keep=1) == [2, 3]
    assert scored(tmp_path, {4: 0.5}, keep=1, higher_is_better=True) == [4]
    assert scored(tmp_path, {5: 0.4}, keep=1, higher_is_better=True) == [4, 5]
    assert scored(tmp_path, {6: 7.0}, keep=1) == [6]


@pytest.mark.parametrize(("higher_is_better", "kept"), [(False, [2, 4]), (True, [4])])
def test_scores_without_a_direction_are_losses(tmp_path, higher_is_better, kept):
    scored(tmp_path, {1: 5.0, 2: 1.0, 3: 4.0}, keep=3)
    for step in (1, 2, 3):
        path = tmp_path / str(step) / checkpoint_files.RECORD_NAME
        content = json.loads(path.read_text())
        record = content["custom_metadata"]
        assert record.pop("higher_is_better") is False
        assert record.pop("metric") == ""
        del record["crc32"]
        record["crc32"] = checkpoint_files._crc32(record)
        path.write_text(json.dumps(content))
    assert scored(tmp_path, {4: 2.0}, keep=1, higher_is_better=higher_is_better) == kept


@pytest.mark.slow
def test_saves_leave_nothing_in_memory(tmp_path):
    checkpoints, state, held = Checkpoints(tmp_path, keep=1), make_state(), []
    for step in range(30):
        if step == 10:
            tracemalloc.start()
        checkpoints.save(step, state, ABOUT, wait=True)
        if step % 10 == 9:
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[2] - held[1] < 10 * 10_000  # bytes in ten saves


def test_nothing_is_deleted_before_the_next_step_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, make_state(), {}, wait=True)
    checkpoints.save(2, make_state(), {})
    assert 1 in saved_steps(tmp_path)
    checkpoints.wait()
    assert saved_steps(tmp_path) == [2]


def test_the_best_step_is_found_on_disk_and_while_it_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    assert checkpoints.best() is None
    for score, better in ((5.0, True), (float("nan"), False), (float("inf"), False)):
        assert checkpoints.is_better(score) is better
    for step, score in ((1, 5.0), (2, 3.0), (3, 3.0), (4, None)):
        checkpoints.save(step, make_state(), {}, score=score)
        assert checkpoints.best() == ((1, 5.0) if step == 1 else (2, 3.0))
    assert [checkpoints.is_better(score) for score in (2.9, 3.0, 3.1)] == [True, False, False]
    checkpoints.wait()
    assert Checkpoints(tmp_path).best() == (2, 3.0)
    assert Checkpoints(tmp_path, higher_is_better=True).best() is None
    restored = Checkpoints(tmp_path)
    restored.restore(abstract(make_state()), step=1)
    assert restored.best() == (1, 5.0)  # the later steps are another branch
    assert restored.is_better(4.0)


def test_scores_of_another_metric_are_ignored(tmp_path):
    few, all_rows = "loss on held_out (32 rows)", "loss on held_out (all rows)"
    assert scored(tmp_path, {1: 2.0, 2: 3.0}, keep=1, metric=few) == [1, 2]
    assert Checkpoints(tmp_path, metric=all_rows).best() is None
    assert scored(tmp_path, {3: 4.0, 4: 5.0}, keep=1, metric=all_rows) == [3, 4]
    assert Checkpoints(tmp_path, metric=all_rows).best() == (3, 4.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_rejected_and_the_previous_step_kept(tmp_path, value):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, make_state(5), {}, wait=True)
    before = sorted(tmp_path.rglob("*"))
    for part, name in (("params", "params/layers_0/kernel"), ("opt_state", "opt_state/1/0/nu/layers_0/kernel")):
        bad = make_state(10)
        tree = bad["params"] if part == "params" else bad["opt_state"][1][0].nu
        tree["layers_0"]["kernel"] = tree["layers_0"]["kernel"].at[7, 15].set(value)
        with pytest.raises(NonFinite, match=name) as caught:
            checkpoints.save(10, bad, {})
        assert (caught.value.step, caught.value.names) == (10, [name])
    assert sorted(tmp_path.rglob("*")) == before
    assert_same(checkpoints.restore(abstract(make_state())).state, make_state(5))


# Damaged files


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_with_an_array_that_is_not_finite_is_not_loaded(tmp_path, monkeypatch, value):
    """Another program may write one, with a checksum that matches."""
    bad = make_state(1)
    bad["params"]["layers_0"]["kernel"] = bad["params"]["layers_0"]["kernel"].at[7, 15].set(value)
    unchecked = lambda arrays: {name: (found, True) for name, (found, _) in checksums(arrays).items()}  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("jaxlm.runtime.checkpoint.checksums", unchecked)
        Checkpoints(tmp_path).save(1, bad, {}, wait=True)
    with pytest.raises(UserError, match="1 contains NaN or infinity in params/layers_0/kernel"):
        restore_params(tmp_path, abstract(bad["params"]))


def test_an_empty_directory_is_not_the_latest_step(copied, caplog):
    (copied / "999999").mkdir()
    checkpoints = Checkpoints(copied, keep=2)
    assert checkpoints.newest() == 30
    assert checkpoints.restore(abstract(make_state())).step == 30
    assert "checkpoint 999999 is empty; falling back to checkpoint 30" in caplog.text
    assert (copied / "999999").exists()  # reading changes nothing
    checkpoints.save(40, make_state(40), {}, wait=True)
    assert "renamed to broken-999999" in caplog.text
    assert saved_steps(copied) == [30, 40]
    assert Checkpoints(copied).restore(abstract(make_state())).step == 40


def test_an_empty_directory_does_not_stop_a_fresh_run_from_saving(tmp_path):
    (tmp_path / "5").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: 5 is empty"):
        Checkpoints(tmp_path).restore(abstract(make_state()))
    Checkpoints(tmp_path).save(5, make_state(), {}, wait=True)
    assert Checkpoints(tmp_path).restore(abstract(make_state())).step == 5


@pytest.mark.parametrize("part", ["params", "opt_state"])
@pytest.mark.parametrize("position", [0.02, 0.3, 0.6, 0.99])
def test_a_flipped_bit_in_the_arrays_is_detected_and_the_previous_step_restored(copied, caplog, part, position):
    path = data_file(copied / "30", part)
    flip_bit(path, int(path.stat().st_size * 8 * position))
    checkpoints = Checkpoints(copied)
    saved = checkpoints.restore(abstract(make_state()))
    assert_same(saved.state, make_state(saved.step))
    if saved.step != 30:
        assert saved.step == 20
        assert "falling back to checkpoint 20" in caplog.text
        assert checkpoints.newest() == 20


@pytest.mark.slow
def test_no_flipped_bit_changes_what_is_restored(written, tmp_path):
    rng = random.Random(0)
    files = [path for path in (written / "30").rglob("*") if path.is_file() and path.stat().st_size]
    files = [path for path in files if "params" not in path.parts]
    arrays = [data_file(written / "30", part) for part in ("params", "opt_state")]
    fell_back = 0
    for path in [*files, *arrays * 3]:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(written, tmp_path / "c")
        flip_bit(tmp_path / "c" / path.relative_to(written), rng.randrange(path.stat().st_size * 8))
        saved = Checkpoints(tmp_path / "c").restore(abstract(make_state()))
        assert saved.metadata == ABOUT | {"step": saved.step}
        assert_same(saved.state, make_state(saved.step))
        fell_back += saved.step == 20
    assert fell_back >= 5  # which bits are flipped depends on the names and order of files


def test_a_flipped_bit_in_the_metadata_is_detected(copied, caplog):
    path = copied / "30" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert text.count('"elapsed_seconds": 1.5') == 1
    path.write_text(text.replace('"elapsed_seconds": 1.5', '"elapsed_seconds": 9.5'))
    assert Checkpoints(copied).restore(abstract(make_state())).step == 20
    assert "checkpoint 30 has a damaged record; falling back to checkpoint 20" in caplog.text


def test_arrays_that_load_with_other_values_are_named(written, tmp_path, caplog):
    # A step with the arrays of another step: every file is intact, so only the checksums can detect it.
    shutil.copytree(written, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "30" / "params")
    shutil.copytree(written / "10" / "params", tmp_path / "c" / "30" / "params")
    assert_same(Checkpoints(tmp_path / "c").restore(abstract(make_state())).state, make_state(20))
    assert "array params/embeddings/token/embedding does not match its checksum" in caplog.text


def test_a_truncated_or_missing_file_is_detected(written, tmp_path):
    files = [path for path in (written / "30").rglob("*") if path.is_file() and "params" not in path.parts]
    for number, path in enumerate(sorted(files)):
        copy = tmp_path / str(number)
        shutil.copytree(written, copy)
        damaged = copy / path.relative_to(written)
        if number % 2:
            damaged.unlink()
        else:
            damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
        saved = Checkpoints(copy).restore(abstract(make_state()))
        assert_same(saved.state, make_state(saved.step))


def test_a_failure_of_orbax_prints_no_traceback(copied, tmp_path):
    data_file(copied / "30", "params").write_bytes(b"")
    (tmp_path / "file").write_text("")
    code = """
import sys, resource, signal, jax.numpy as jnp
from pathlib import Path
from jaxlm.runtime.checkpoint import Checkpoints, restore_params
from jaxlm.errors import UserError
try:
    restore_params(Path(sys.argv[1]), {})
    raise SystemExit("no error")
except UserError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(40, {"params": {"w": jnp.arange(1e6) ** 0.5}}, {})
try:
    checkpoints.wait()
except UserError as error:
    print(error)
"""
    output, errors = run_python(code, copied).communicate(timeout=60)
    assert "checkpoint 40 could not be written" in output
    assert "Traceback" not in errors
    assert "tensorstore" not in errors


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_a_step_without_one_of_its_parts_is_skipped(copied, part):
    shutil.rmtree(copied / "30" / part)
    assert Checkpoints(copied).newest() == 20
    assert Checkpoints(copied).restore(abstract(make_state())).step == 20


def test_a_step_renamed_by_hand_is_rejected(copied):
    (copied / "30").rename(copied / "31")
    assert Checkpoints(copied).restore(abstract(make_state())).step == 20


def test_a_run_that_fell_back_can_save_the_broken_step_again(copied, caplog):
    shutil.rmtree(copied / "30" / "params")
    checkpoints = Checkpoints(copied, keep=1)
    assert checkpoints.restore(abstract(make_state())).step == 20
    checkpoints.save(30, make_state(33), {}, wait=True)
    assert saved_steps(copied) == [30]
    assert (copied / "broken-30" / "opt_state").exists()
    assert_same(Checkpoints(copied).restore(abstract(make_state())).state, make_state(33))


def test_a_step_damaged_during_the_run_is_renamed_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {}, wait=True)
    data_file(tmp_path / "2", "params").write_bytes(b"")
    assert checkpoints.restore(abstract(make_state())).step == 1
    checkpoints.save(2, make_state(22), {}, wait=True)
    assert_same(checkpoints.restore(abstract(make_state())).state, make_state(22))


@pytest.mark.slow
def test_a_run_never_starts_over_when_every_checkpoint_is_broken(copied):
    for step in (10, 20, 30):
        path = data_file(copied / str(step), "params")
        path.write_bytes(b"")
    before = sorted(copied.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: 30 .*20 .*10 ") as caught:
        Checkpoints(copied).restore(abstract(make_state()))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is intact"):
        restore_params(copied, abstract(make_state()["params"]))
    assert sorted(copied.rglob("*")) == before


def test_a_directory_with_other_files_is_rejected(tmp_path):
    (tmp_path / "model.safetensors").write_text("x")
    for restore in (lambda: Checkpoints(tmp_path).restore({}), lambda: restore_params(tmp_path, {})):
        with pytest.raises(UserError, match=r"contains no checkpoint written by jaxlm, only model\.safetensors"):
            restore()
    with pytest.raises(UserError, match="is a file; expected a directory"):
        Checkpoints(tmp_path / "model.safetensors").restore({})
    with pytest.raises(UserError, match="there is no checkpoint in"):
        restore_params(tmp_path / "absent", {})


def test_a_checkpoint_of_another_program_is_rejected(tmp_path):
    from orbax.checkpoint import v1 as ocp

    ocp.save_checkpointables(tmp_path / "7", make_state())
    with pytest.raises(UserError, match="7 was not written by jaxlm"):
        Checkpoints(tmp_path).restore(abstract(make_state()))


def test_a_tree_that_does_not_fit_is_rejected_with_the_first_differences(written):
    wanted = abstract(make_state())
    wanted["params"]["layers_1"] = {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}
    wanted["params"]["layers_0"]["kernel"] = jax.ShapeDtypeStruct((8, 12), jnp.float32)
    del wanted["params"]["embeddings"]
    with pytest.raises(UserError) as caught:
        Checkpoints(written).restore(wanted)
    for text in (
        "checkpoint 30",
        "missing from the checkpoint: params/layers_1/bias",
        "unknown to the model: params/embeddings/token/embedding",
        "params/layers_0/kernel (float32[8, 16] in the checkpoint, float32[8, 12] in the model)",
    ):
        assert text in str(caught.value)


def test_a_full_disk_is_reported_and_the_previous_step_kept(tmp_path):
    rows = jax.random.normal(jax.random.key(0), (600, 600))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"params": {"w": rows}}, {}, wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpoints.save(2, {"params": {"w": rows}}, {})
        with pytest.raises(UserError, match=r"checkpoint 2 .*: File too large; checkpoint 1 is kept; fix that"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    checkpoints.save(2, {"params": {"w": rows}}, {}, wait=True)
    assert saved_steps(tmp_path) == [2]


def test_a_directory_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint 2 could not be written to .*/file/checkpoints: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(2, make_state(), {})


LOOP = """
import sys, itertools, jax.numpy as jnp
from pathlib import Path
from jaxlm.runtime.checkpoint import Checkpoints
directory, start = Path(sys.argv[1]), int(sys.argv[2])
checkpoints = Checkpoints(directory, keep=1)
for step in itertools.count(start):
    checkpoints.save(step, {"params": {f"w{i}": jnp.full((128, 128), step, jnp.float32) for i in range(8)}}, {})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_an_intact_step(tmp_path):
    like = {"params": {f"w{i}": jax.ShapeDtypeStruct((128, 128), jnp.float32) for i in range(8)}}
    rng, start = random.Random(1), 0
    for _ in range(4):
        process = run_python(LOOP, tmp_path, start)
        for _ in range(3):
            last = int(process.stdout.readline())
        time.sleep(rng.random() * 0.1)
        process.kill()
        last = max([last, *map(int, process.stdout.read().split())])
        process.communicate()
        saved = Checkpoints(tmp_path).restore(like)
        assert last - 2 <= saved.step <= last + 1
        assert all(np.all(np.asarray(leaf) == saved.step) for leaf in jax.tree.leaves(saved.state))
        start = saved.step + 1
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(10**6, saved.state, {}, wait=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [str(10**6)]


def test_only_the_next_run_removes_what_a_killed_save_left(copied):
    for name in ("40.orbax-checkpoint-tmp", "9.deleting"):
        (copied / name / "params").mkdir(parents=True)
    (copied / "notes.txt").write_text("mine")
    checkpoints = Checkpoints(copied, keep=3)
    assert checkpoints.restore(abstract(make_state())).step == 30
    assert (copied / "40.orbax-checkpoint-tmp").exists()  # it may belong to a run that is writing
    checkpoints.save(40, make_state(40), {}, wait=True)
    assert {entry.name for entry in copied.iterdir()} == {"20", "30", "40", "notes.txt"}


def test_a_killed_first_save_leaves_no_checkpoint(tmp_path, caplog):
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).restore(abstract(make_state())) is None
    assert "interrupted" in caplog.text


# Parameters alone


def test_parameters_are_read_without_the_optimizer(copied):
    shutil.rmtree(copied / "30" / "opt_state" / "ocdbt.process_0")  # makes its arrays unreadable
    saved = restore_params(copied, jax.eval_shape(lambda: make_state()["params"]))
    assert saved.step == 30
    assert saved.metadata == ABOUT | {"step": 30}
    assert_same(saved.state, make_state(30)["params"])


def test_damaged_parameters_are_not_returned(copied):
    data_file(copied / "30", "params").write_bytes(b"")
    assert_same(restore_params(copied, abstract(make_state()["params"])).state, make_state(20)["params"])


# Other numbers of devices and processes

MESHES = """
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.runtime.checksums import checksums, params_sha256
def shardings(shape, devices):
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices])
    specs = {"kernel": P("data", "fsdp"), "column": P(None, "fsdp"), "bias": P("fsdp"), "count": P()}
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
values = {name: jax.random.normal(jax.random.key(i), s) for i, (name, s) in
          enumerate({"kernel": (8, 12), "column": (5, 4), "bias": (4,)}.items())} | {"count": jnp.int32(7)}
state = {"params": jax.device_put(values, shardings((2, 2), 4))}
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(3, state, {}, wait=True)
for shape, devices in (((1, 2), 2), ((2, 1), 2), ((1, 1), 1), ((1, 4), 4)):
    like = {name: jax.ShapeDtypeStruct(values[name].shape, values[name].dtype, sharding=s)
            for name, s in shardings(shape, devices).items()}
    saved = checkpoints.restore({"params": like})
    for name, value in saved.state["params"].items():
        assert value.sharding == like[name].sharding
        assert np.array_equal(np.asarray(value), np.asarray(values[name]))
    assert params_sha256(saved.state["params"]) == params_sha256(values)
bad = {"params": state["params"] | {"bias": state["params"]["bias"].at[3].set(jnp.nan)}}
try:
    checkpoints.save(4, bad, {})
except Exception as error:
    print(type(error).__name__, error.names)
print(params_sha256(state["params"]))
"""


@pytest.mark.slow
def test_saved_on_four_devices_restored_on_two_and_one(tmp_path):
    process = run_python(MESHES, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    rejected, sha256 = output.split("\n")[:2]
    assert rejected == "NonFinite ['params/bias']"
    shapes = {"kernel": (8, 12), "column": (5, 4), "bias": (4,)}
    like = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    saved = restore_params(tmp_path, like | {"count": jax.ShapeDtypeStruct((), jnp.int32)})
    assert params_sha256(saved.state) == sha256


PROCESSES = """
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.runtime.checksums import checksums, params_sha256
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
split = {"kernel": NamedSharding(mesh, P("data")), "bias": NamedSharding(mesh, P())}
make = jax.jit(lambda x: {"kernel": jnp.arange(24.0).reshape(6, 4) + x, "bias": jnp.ones(3) * x}, out_shardings=split)
like = {"params": {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=split[k]) for k, v in make(0.0).items()}}
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
for step in (1, 2, 3):
    checkpoints.save(step, {"params": make(float(step))}, {"step": step})
checkpoints.save(3, {"params": make(3.0)}, {"step": 9}, wait=True)  # the same arrays: left as it is
if jax.process_index() == 0:
    (Path(sys.argv[1]) / "9").mkdir()
saved = Checkpoints(Path(sys.argv[1])).restore(like)
assert saved.metadata == {"step": 3}
print(saved.step, params_sha256(saved.state["params"]), params_sha256(make(3.0)))
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    processes = [run_python(PROCESSES, tmp_path / "checkpoints", port, i) for i in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    lines = [output.splitlines()[-1].split() for output, _ in results]
    assert lines[0] == lines[1]
    assert lines[0][1] == lines[0][2]
    assert saved_steps(tmp_path / "checkpoints") == [3, 9]
