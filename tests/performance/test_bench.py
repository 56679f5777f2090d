"""The bench's figures agree with each other and with the program that it times."""

import json
import os

import numpy as np
import pytest

from jaxlm import cli
from jaxlm.config import load_config, phases_of
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.objectives.masking import prediction_slots
from jaxlm.objectives.table import make_objective
from jaxlm.performance import bench as bench_module
from jaxlm.performance.bench import bench, describe, profile_json, resized, shape_config, synthetic_batch
from tests.conftest import ROOT
from tests.untrained import TINY, make_workdir

BATCH, LENGTH = 4, 64


@pytest.fixture(scope="module")
def config():
    return shape_config("2x128", 300, BATCH, LENGTH)


@pytest.fixture(scope="module")
def results(config):
    """Two runs of the bench from one source line: a profiled step is compiled again if the calling line differs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "MEASURING_SECONDS", 0.05)
        return [bench(config, steps, 1, documents=3, padding=0.25, profiled=3) for steps in (4, 1)]


@pytest.fixture(scope="module")
def result(results):
    return results[0]


@pytest.mark.slow
def test_the_figures_agree_with_each_other(result):
    assert result["padding"] == 0.25
    assert result["tokens_per_second"] == pytest.approx(BATCH * LENGTH / result["step_seconds"])
    assert result["tokens_per_second_without_padding"] == pytest.approx(0.75 * result["tokens_per_second"])
    assert result["mfu_measured"] * result["measured_flops_per_second"] == pytest.approx(
        result["model_flops"] / result["step_seconds"]
    )
    assert result["mfu"] == result["mfu_measured"]  # a CPU has no datasheet here
    assert result["mfu_datasheet"] is None
    assert result["step_bytes"] > 12 * result["parameters"]  # the parameters and Adam's two means
    assert result["compile_seconds"] > result["trace_seconds"] > 0
    text = describe(result)
    assert "without padding" in text
    assert "the measured" in text


@pytest.mark.slow
def test_the_profile_covers_the_step_and_finds_every_product(config, result):
    profile = result["profile"]
    covered = sum(time.seconds for time in profile.kinds.values())
    assert 0.3 * profile.step_seconds < covered <= profile.step_seconds
    assert covered + profile.uncovered == pytest.approx(profile.step_seconds)
    # The kernels' products are all that training_flops counts, and nothing else.
    slots = prediction_slots(config.masking.scheme, config.masking.rate, LENGTH)
    expected = training_flops(encoder_config(config.model), BATCH, LENGTH, BATCH * slots)
    assert sum(time.flops for time in profile.kinds.values()) == pytest.approx(expected, rel=1e-3)
    assert {name for name, time in profile.kinds.items() if time.flops} == {"products", "attention", "logits"}
    assert {"normalisation", "dropout", "optimizer", "masking", "embeddings", "activation"} <= set(profile.kinds)
    assert profile.kinds["the rest"].seconds < 0.2 * covered
    answer = json.loads(json.dumps(profile_json(profile)))
    assert answer["kinds"]["products"]["product_flops_per_second"] > 0


@pytest.mark.slow
def test_a_compiled_step_is_found_again(results):
    assert [result["compiled_from_cache"] for result in results] == [False, True]
    assert ["cache" in describe(result) for result in results] == [False, True]


def columns(length=20, objective="masked"):
    config = shape_config("1x64", 100, 4, length)
    config.train.objective = objective
    encoder = encoder_config(config.model)
    return make_objective(config, phases_of(config)[0], encoder, Execution(), SYNTHETIC_FACTS).columns(length)


def test_rows_are_packed_and_padded():
    batch = synthetic_batch(columns(), 3, 20, documents=3, padding=0.25)
    assert batch["segment_ids"].tolist() == [[1] * 5 + [2] * 5 + [3] * 5 + [0] * 5] * 3
    assert (batch["tokens"][:, 15:] == 0).all()
    assert (batch["tokens"][:, :15] >= 5).all()
    assert batch["word_starts"].dtype == bool
    assert np.array_equal(synthetic_batch(columns(), 3, 20, 1, 0.0)["segment_ids"], np.ones((3, 20)))


@pytest.mark.parametrize(("documents", "padding"), [(0, 0), (21, 0), (16, 0.25), (1, 1.0), (1, -0.1)])
def test_documents_that_do_not_fit_are_refused(documents, padding):
    with pytest.raises(UserError, match="do not fit into a row of 20 tokens"):
        synthetic_batch(columns(), 3, 20, documents, padding)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["causal", "classification"])
def test_every_objective_is_timed(objective, monkeypatch):
    monkeypatch.setattr(bench_module, "MEASURING_SECONDS", 0.01)
    config = shape_config("1x64", 100, 4, 32)
    config.train.objective = objective
    config.task.train = "not read"
    result = bench(config, 1, 0, documents=2)
    assert result["objective"] == objective
    assert result["tokens_per_second"] > 0
    assert set(columns(32, objective)) >= {"tokens", "segment_ids"}


def test_a_recipe_is_timed_with_other_rows():
    config = resized(load_config(str(ROOT / "configs" / "modernbert_base.py")), 4, 512)
    (phase,) = phases_of(config)
    assert (phase.batch_size, phase.sequence_length, phase.accumulate) == (4, 512, 1)
    assert (phase.mask_rate, phase.rotary_base, phase.learning_rate) == (0.3, 160_000.0, 3e-4)
    own = resized(load_config(str(ROOT / "configs" / "modernbert_base.py")), None, None)
    assert phases_of(own)[-1] == phases_of(load_config(str(ROOT / "configs" / "modernbert_base.py")))[-1]


def test_the_architecture_of_init_from_is_timed(tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(bench_module, "bench", lambda config, *_: timed.append(config) or {"profile": None})
    monkeypatch.setattr(bench_module, "describe", lambda result: "")
    run = make_workdir(tmp_path / "run")
    arguments = ["--device-only", f"--config.init_from={run}", "--config.data.sequence_length=16"]
    bench_module.main([f"--config={ROOT / 'configs' / 'continue.py'}", *arguments])
    assert (timed[0].model.width, timed[0].model.layers) == (TINY["width"], TINY["layers"])


@pytest.mark.parametrize(("arguments", "words"), [
    (["--shape=2x64", "--steps=0"], "--steps=0: must be at least 1"),
    (["--shape=2x64", "--batch=0"], "--batch=0: must be at least 1"),
    (["--shape=2x64", "--profile=nowhere/x.png"], "there is no directory nowhere"),
    (["--shape=2x64", "--profile=x.txt"], "must be a .png"),
    (["--shape=2x64", "--documents=500"], "do not fit into a row"),
    ([f"--config={ROOT / 'configs' / 'mini.py'}", "--vocab=500"], "--vocab=500 applies to --shape"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said(arguments, words, monkeypatch):
    monkeypatch.setattr(bench_module, "MEASURING_SECONDS", 0.01)
    with pytest.raises(UserError, match=words):
        bench_module.main(arguments)


@pytest.mark.parametrize(("given", "place", "expected"), [
    (None, "cache", "cache/jaxlm/compiled"),
    ("own", "cache", "own"),
    (None, "file", None),  # nothing can be written there: every run compiles
])  # fmt: skip
def test_compiled_steps_are_kept_in_the_users_cache(given, place, expected, monkeypatch, tmp_path):
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv(name, str(tmp_path / "own"))  # so that what the program sets is undone
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    (tmp_path / "file").write_text("")
    cli._set_environment()
    assert os.environ.get(name) == (str(tmp_path / expected) if expected else None)
