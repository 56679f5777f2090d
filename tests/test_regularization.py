"""Runs that are pruned, averaged or start with fewer heads, through the whole loop: resumed, saved and exported."""

import logging

import numpy as np
import pytest

from jaxlm.model.heads import encode
from jaxlm.run import set_up
from jaxlm.runtime.run_log import read_metrics
from jaxlm.trainer import train
from jaxlm.use.export import export
from jaxlm.use.loading import load_trained
from tests.test_finetuning import classify, encoder  # noqa: F401  fixtures

ALONE = ("evaluation.select=none", "evaluation.calibrate=false", "evaluation.every=0")


def kernels_of(workdir, step):
    params = load_trained(workdir, step=step).params["encoder"]
    layers = [layer for name, layer in params.items() if name.startswith("layers_")]
    return [np.asarray(dense["kernel"]) for layer in layers for block in ("attention", "feed_forward")
            for dense in layer[block].values()]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_pruned_weights_stay_zero_when_a_run_resumes_with_the_same_bits(classify, tmp_path, method):  # noqa: F811
    settings = (
        *ALONE, "pruning.sparsity=0.5", f"pruning.method={method}", "pruning.end=0", "optimizer.average=0.9",
        "model.dropout=0.1", "checkpoint.every=4", "checkpoint.keep=20",
    )  # fmt: skip
    whole = train(classify("train.steps=8", *settings), tmp_path / "whole")
    train(classify("train.steps=4", *settings), tmp_path / "parts")
    parts = train(classify("train.steps=8", *settings), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]
    before, after = (kernels_of(tmp_path / "parts", step) for step in (4, 8))
    assert sum(int((kernel == 0).sum()) for kernel in before) == sum(kernel.size for kernel in before) // 2
    moved = 0
    for first, last in zip(before, after, strict=True):
        np.testing.assert_array_equal(first == 0, last == 0)
        moved += int((first != last).sum())
    assert moved > 0
    assert read_metrics(tmp_path / "parts")[-1]["params_sha256"] == whole["params_sha256"]


@pytest.mark.slow
def test_a_run_of_a_smaller_model_is_exported_with_the_same_states(classify, encoder, tmp_path, caplog):  # noqa: F811
    start = load_trained(encoder)
    heads, units = start.encoder.heads // 2, start.encoder.feed_forward_width // 2
    fewer = (
        "model.remove_heads=magnitude", f"model.heads={heads}", "model.remove_units=magnitude",
        f"model.feed_forward_width={units}", "model.remove_layers=spread", "model.layers=1",
    )  # fmt: skip
    train(classify("train.steps=2", *ALONE, *fewer), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    assert (trained.encoder.heads, trained.encoder.head_width) == (heads, start.encoder.head_width)
    assert (start.encoder.layers, trained.encoder.layers) == (2, 1)
    assert trained.params["encoder"]["layers_0"]["attention"]["query"]["kernel"].shape[1] < start.encoder.width
    resumed = train(classify("train.steps=3", *ALONE, *fewer), tmp_path / "run")
    assert resumed["step"] == 3
    trained = load_trained(tmp_path / "run")

    with caplog.at_level(logging.WARNING):
        export(tmp_path / "run", tmp_path / "out")
    assert f"{heads} of {start.encoder.heads} are written as zeros" in caplog.text
    exported = load_trained(tmp_path / "out")
    assert (exported.encoder.heads, exported.encoder.feed_forward_width) == (start.encoder.heads, units)
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    states = [encode(model.model, model.params, tokens) for model in (trained, exported)]
    np.testing.assert_allclose(*states, atol=1e-5)

    # A run may start from it without naming the number of heads, and remove more.
    train(classify("train.steps=1", f"init_from={tmp_path / 'run'}", *ALONE), tmp_path / "on")
    on = load_trained(tmp_path / "on").encoder
    assert (on.heads, on.layers) == (heads, 1)


@pytest.mark.slow
def test_a_teacher_may_be_a_directory_of_transformers_with_another_vocabulary(classify, encoder, mini, tmp_path):  # noqa: F811
    settings = (*ALONE, "train.steps=4")
    train(classify(*settings, "task.labels=calm,busy"), tmp_path / "teacher")
    export(tmp_path / "teacher", tmp_path / "exported")
    other = mini("tokenizer.vocab_size=60", "train.steps=1", "model.dropout=0", "model.attention_dropout=0")
    train(other, tmp_path / "other")

    def columns(teacher, *more):
        learn = (f"task.teacher={teacher}", "task.teacher_states=0.5", *more)
        run = set_up(classify(*settings, *learn), tmp_path / f"{teacher.name}{len(more)}")
        return [run.data.train.columns[name] for name in ("teacher_outputs", "teacher_states")]

    own = columns(tmp_path / "teacher")
    for more in ((), (f"init_from={tmp_path / 'other'}",)):
        for found, expected in zip(columns(tmp_path / "exported", *more), own, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)
