"""The training loop in this process: resuming, phases, limits, and what stops it."""

import functools
import json
import logging
import math
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlm import announcements, trainer
from jaxlm.config import default_config
from jaxlm.data.prepared import open_prepared
from jaxlm.errors import UserError
from jaxlm.evaluation import held_out
from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.model.config import encoder_config
from jaxlm.run import Run
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.runtime.checkpoint_files import read_record
from jaxlm.runtime.clock import Clock
from jaxlm.runtime.run_log import read_metrics
from jaxlm.trainer import train
from jaxlm.use.evaluate import evaluate
from jaxlm.use.loading import load_trained
from tests.injected import with_nan_params

# For runs with a compiled step of their own: it compiles faster.
LIGHT = ("model.layers=1", "model.dropout=0", "model.attention_dropout=0")


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, []),
        ({"window": 1}, []),
        (
            {"value_residual": 0.5, "positions": "alibi"},
            ["cannot be exported to Transformers: the nearest family, modernbert, lacks model.positions=alibi,"
             " model.value_residual=0.5"],
        ),
        (
            {"norm_position": "post", "positions": "learned", "activation": "geglu"},
            ["cannot be exported to Transformers: the nearest family, bert, lacks model.activation=geglu"],
        ),
    ],
)  # fmt: skip
def test_training_says_what_cannot_be_exported(settings, lines):
    config = default_config()
    config.model.update(settings)
    definable = SimpleNamespace(transformers_files=lambda *args, **more: {})
    run = SimpleNamespace(
        config=config, assembly=SimpleNamespace(encoder=encoder_config(config.model, 80)),
        data=SimpleNamespace(tokenizer=definable),
    )  # fmt: skip
    assert announcements._export_limits(run) == lines

    def refuse(*args, **more):
        raise UserError("cannot export the tokenizer: it ends words with a space")

    definable.transformers_files = refuse
    assert announcements._export_limits(run) == [*lines, "cannot export the tokenizer: it ends words with a space"]

    config.train.objective = "causal"
    assert any(
        "trained to predict each token from those before it" in line for line in announcements._export_limits(run)
    )


def resumes(workdir) -> list[int]:
    return [entry["step"] for entry in read_metrics(workdir) if entry["kind"] == "start"]


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_it_promises(mini, tmp_path):
    shown = ("logging.curve=true", "logging.tensorboard=true")
    learning = ("optimizer.learning_rate=0.01", "schedule.name=linear", "schedule.warmup=0.06")
    result = train(mini("train.steps=60", "checkpoint.every=20", *learning, *shown), tmp_path)
    kinds = {entry["kind"] for entry in read_metrics(tmp_path)}
    assert {"start", "train", "evaluation", "checkpoint", "end"} <= kinds
    losses = [entry["loss"] for entry in read_metrics(tmp_path) if entry["kind"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    held_out = result["evaluation"]["held_out"]
    assert held_out["n"] > 50
    assert held_out["loss"] < losses[0]
    for name in ("config.json", "tokenizer", "checkpoints/60", "metrics.jsonl", "curve.png", "tensorboard"):
        assert (tmp_path / name).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("train.accumulate=2", "masking.scheme=whole_word", *LIGHT)])
def test_six_steps_are_three_and_three(mini, tmp_path, extra):
    settings = ("checkpoint.every=3", *extra)
    whole = train(mini("train.steps=6", *settings), tmp_path / "whole")
    train(mini("train.steps=3", *settings), tmp_path / "parts")
    parts = train(mini("train.steps=6", *settings), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]
    assert resumes(tmp_path / "parts") == [0, 3]


@pytest.mark.slow
def test_a_resume_in_a_later_epoch_gives_the_same_bits(mini, tmp_path):
    # About 340 rows of 32 tokens: 8 rows a step begin the second epoch after step 42.
    settings = ("checkpoint.every=25", "evaluation.every=0", "logging.every=20")
    whole = train(mini("train.steps=60", *settings), tmp_path / "whole")
    train(mini("train.steps=50", *settings), tmp_path / "parts")
    assert train(mini("train.steps=60", *settings), tmp_path / "parts")["params_sha256"] == whole["params_sha256"]


@pytest.fixture(scope="module")
def run_of_seeds(mini, tmp_path_factory):
    """Returns the checksum of three steps with some seeds, each run once."""

    @functools.cache
    def run(*seeds: str) -> str:
        return train(mini("train.steps=3", *seeds), tmp_path_factory.mktemp("seeds"))["params_sha256"]

    return run


@pytest.mark.slow
def test_another_seed_gives_another_model(run_of_seeds):
    assert run_of_seeds("train.seed=0") != run_of_seeds("train.seed=1")


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["init_seed", "data_seed", "mask_seed"])
def test_each_seed_is_its_own(run_of_seeds, seed):
    given = ["train.init_seed=0", "train.data_seed=0", "train.mask_seed=0"]
    other = [f"train.{seed}=1" if setting.startswith(f"train.{seed}") else setting for setting in given]
    assert run_of_seeds("train.seed=5", *given) == run_of_seeds("train.seed=0")
    assert run_of_seeds("train.seed=5", *other) != run_of_seeds("train.seed=0")


@pytest.mark.slow
def test_a_finished_run_says_so_and_keeps_its_result(mini, tmp_path, capsys):
    config = mini("train.steps=4")
    first = train(config, tmp_path)
    again = train(config, tmp_path)
    assert again["params_sha256"] == first["params_sha256"]
    assert "complete at step 4" in capsys.readouterr().out


@pytest.mark.slow
def test_config_json_replays_the_run(mini, tmp_path):
    from jaxlm.config import load_config

    first = train(mini("train.steps=4"), tmp_path / "first")
    replayed = train(load_config(str(tmp_path / "first" / "config.json")), tmp_path / "second")
    assert replayed["params_sha256"] == first["params_sha256"]


@pytest.mark.slow
def test_another_config_is_refused_by_the_names_of_what_differs(mini, tmp_path):
    train(mini("train.steps=4"), tmp_path)
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.002"):
        train(mini("train.steps=4", "optimizer.learning_rate=0.002"), tmp_path)
    train(mini("train.steps=6", "logging.every=1", "checkpoint.keep=1", "evaluation.every=3"), tmp_path)


@pytest.fixture(scope="module")
def phased(mini, tmp_path_factory):
    """Two phases, at a stretch and cut where the first ends and within the second.

    Returns the work directories, the results, and what judges the saved model of the cut one, by the steps done.
    """
    phases = (
        '[{"steps": 4, "sequence_length": 16, "batch_size": 16, "mask_rate": 0.3, "rotary_base": 20},'
        ' {"sequence_length": 32, "rotary_base": 50000}]'
    )
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    settings = (f"train.phases={phases}", "optimizer.learning_rate=0.03", *LIGHT)  # positions come to matter at once
    run = lambda steps, where: train(mini(f"train.steps={steps}", *settings), where)  # noqa: E731
    ends, evaluated = {}, {}
    for steps in (4, 6, 9):
        ends[steps] = run(steps, parts)
        if steps == 6:
            continue
        trained = load_trained(parts, "bfloat16")
        stores = open_prepared(json.loads((parts / "data.json").read_text())["directory"])
        evaluated[steps] = (trained.encoder.rotary_base, evaluate(trained, stores.held_out, rows=32))
    return whole, run(9, whole), ends, evaluated


@pytest.mark.slow
def test_phases_change_length_batch_and_rate_and_resume_inside(phased):
    workdir, whole, ends, _ = phased
    assert ends[9]["params_sha256"] == whole["params_sha256"]
    shares = {e["step"]: e["masked_share"] for e in read_metrics(workdir) if e["kind"] == "train"}
    assert abs(shares[4] - 0.3) < 0.03
    assert abs(shares[8] - 0.15) < 0.03


@pytest.mark.slow
def test_a_causal_phase_comes_before_the_masked_one_and_resumes_inside(mini, tmp_path):
    phases = 'train.phases=[{"steps": 5, "objective": "causal"}, {}]'
    whole = train(mini("train.steps=8", phases, "logging.every=1", *LIGHT), tmp_path / "whole")
    for steps in (3, 8):
        parts = train(mini(f"train.steps={steps}", phases, *LIGHT), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]
    shares = [e["masked_share"] for e in read_metrics(tmp_path / "whole") if e["kind"] == "train"]
    assert min(shares[:5]) > 0.9  # the first token of a document follows nothing
    np.testing.assert_allclose(shares[5:], 0.15, atol=0.04)


@pytest.mark.slow
def test_the_mask_rate_follows_its_line(mini, tmp_path):
    train(mini("train.steps=20", "masking.rate=0.4", "masking.final_rate=0.1", "logging.every=1", *LIGHT), tmp_path)
    entries = [entry for entry in read_metrics(tmp_path) if entry["kind"] == "train"]
    rates = np.linspace(0.4, 0.1, 21)[:20]
    np.testing.assert_allclose([entry["masked_share"] for entry in entries], rates, atol=0.04)
    # And what a step is said to compute falls with it: MFU by tokens a second.
    assert "tokens_per_second" not in entries[0]  # the step that was compiled is not timed
    flops = np.array([entry["mfu"] / entry["tokens_per_second"] for entry in entries[1:]])
    fixed, logits = np.linalg.lstsq(np.stack([np.ones(19), rates[1:]], 1), flops / flops[0], rcond=None)[0]
    assert logits > 0.1
    np.testing.assert_allclose(flops / flops[0], fixed + logits * rates[1:], atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "steps"), [("train.epochs=0.5", None), ("train.tokens=2000", 8)])
def test_epochs_and_tokens_end_a_run(mini, tmp_path, end, steps):
    result = train(mini("train.steps=none", end, "checkpoint.every=100"), tmp_path)
    start = next(entry for entry in read_metrics(tmp_path) if entry["kind"] == "start")
    assert result["step"] == start["total_steps"]
    if steps:
        assert result["step"] == steps  # 2,000 tokens in batches of 8 x 32
    else:
        assert 100 < result["step"] < 110


@pytest.mark.slow
def test_a_time_budget_ends_a_run_and_its_schedule_reaches_zero(mini, tmp_path, monkeypatch):
    reads = iter(range(10**6))  # the clock moves a tenth of a second whenever it is read, however busy the machine is
    monkeypatch.setattr(Clock, "elapsed", property(lambda self: next(reads) / 10))
    schedule = ("schedule.name=linear", "schedule.warmup=0.1", *LIGHT)
    train(mini("train.steps=none", "train.minutes=0.25", *schedule, "logging.every=1"), tmp_path)
    entries = [entry for entry in read_metrics(tmp_path) if entry["kind"] == "train"]
    rates = [entry["learning_rate"] for entry in entries]
    assert len(rates) > 30
    assert max(rates) > 0.9e-3
    assert rates[-1] < 0.05e-3
    assert Checkpoints(tmp_path / "checkpoints").read_metadata(entries[-1]["step"])["elapsed_seconds"] >= 15


@pytest.mark.slow
def test_a_time_budget_that_is_spent_trains_no_more(mini, tmp_path):
    settings = ("train.steps=none", "train.minutes=0.02")
    first = train(mini(*settings), tmp_path)
    assert first["step"] >= 1
    assert train(mini(*settings), tmp_path) == first


@pytest.mark.slow
def test_a_save_that_outlasts_the_time_budget_is_not_the_last(mini, tmp_path, monkeypatch):
    now, save = [0.0], Checkpoints.save

    def slow_save(*args, **more):
        save(*args, **more)
        now[0] += 20

    monkeypatch.setattr(Clock, "elapsed", property(lambda self: now[0]))
    monkeypatch.setattr(Checkpoints, "save", slow_save)
    settings = ("train.steps=none", "train.minutes=0.25", "checkpoint.every=1")
    assert train(mini(*settings), tmp_path)["step"] == 2
    assert Checkpoints(tmp_path / "checkpoints").read_metadata(2)["elapsed_seconds"] == 20
    assert train(mini(*settings), tmp_path)["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("count_compilation", [False, True])
def test_a_time_budget_begins_when_the_first_step_has_finished(mini, tmp_path, monkeypatch, count_compilation):
    compile_step = trainer.compile_step

    def slow_compilation(*arguments):
        time.sleep(0.7)
        return compile_step(*arguments)

    monkeypatch.setattr(trainer, "compile_step", slow_compilation)
    budget = ("train.steps=none", "train.minutes=0.01", f"train.count_compilation={count_compilation}")
    result = train(mini(*budget, *LIGHT, "evaluation.every=0", "checkpoint.every=100"), tmp_path)
    assert (result["step"] > 1) is not count_compilation


@pytest.fixture
def held_out_losses(monkeypatch):
    """Sets the held-out loss that is found after each number of updates, {step: loss}."""
    evaluate_really = Run.evaluate

    def set_losses(losses: dict[int, float]) -> None:
        def evaluate(self, evaluators, params, log, step):
            results = evaluate_really(self, evaluators, params, log, step)
            return {name: metrics | {"loss": losses[step]} for name, metrics in results.items()}

        monkeypatch.setattr(Run, "evaluate", evaluate)

    return set_losses


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"minutes": 2.0}, "2 minutes, without compilation"),
        ({"minutes": 0.5, "count_compilation": True}, "0.5 minutes, with compilation"),
        ({"steps": 5000}, "5,000 steps (2,000.00 epochs)"),
    ],
)
def test_the_length_of_a_run_is_said_in_words(settings, text):
    config = default_config()
    config.train.update(settings)
    rows = SimpleNamespace(steps_for=lambda epochs, tokens: 2.5 * epochs)
    assembly = SimpleNamespace(phases=[None])
    run = SimpleNamespace(config=config, total_steps=config.train.steps, rows=rows, assembly=assembly)
    assert announcements._length(run) == text
    config.data.weights = (1.0, 2.0)
    assert "epochs" not in announcements._length(run)


def steps_in(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_best_evaluation_is_saved_whenever_it_comes(mini, tmp_path, capsys, held_out_losses):
    held_out_losses({3: 3.0, 6: 5.0, 8: 4.0, 9: 3.0, 12: 3.5})
    settings = ("evaluation.every=3", "checkpoint.every=4", "checkpoint.keep=1", *LIGHT)
    train(mini("train.steps=8", *settings), tmp_path)
    assert steps_in(tmp_path) == [3, 8]
    train(mini("train.steps=12", *settings), tmp_path)
    assert steps_in(tmp_path) == [3, 12]
    shown = capsys.readouterr().out
    assert "jumps" not in shown  # the learning rate is constant
    assert (
        "best checkpoint: step 3, with the lowest loss on held_out, 3 (15% of tokens masked, the first 32 of 107 "
        "rows); the figures above are those of the last step, 12\n"
    ) in shown
    saved = [entry["step"] for entry in read_metrics(tmp_path) if entry["kind"] == "checkpoint"]
    assert saved == [2, 3, 4, 6, 10]  # at 9, the loss was no better; the last step of a run is always saved

    # It is the whole state of that step, encoder, head and optimizer: a run of three steps ends with the same arrays.
    train(mini("train.steps=3", *settings), tmp_path / "alone")
    kept, alone = (read_record(folder / "checkpoints", 3) for folder in (tmp_path, tmp_path / "alone"))
    assert {"params/encoder", "params/head"} <= {"/".join(name.split("/")[:2]) for name in kept["arrays"]}
    assert kept["arrays"] == alone["arrays"]

    # The loss on other rows cannot be compared with the one that was saved.
    held_out_losses({15: 9.0, 16: 9.5})
    train(mini("train.steps=16", *settings, "evaluation.rows=8"), tmp_path)
    assert steps_in(tmp_path) == [15, 16]


def test_only_a_better_evaluation_of_the_selecting_set_is_worth_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": {"w": np.ones(2)}}, {}, score=3.0, wait=True)
    selects = Evaluator("dev", 1, None, None, selects="loss")
    assembly, clock = SimpleNamespace(update=SimpleNamespace(complete_from=0.0)), Clock(None, 10, 0.0, False)

    def found(loss, name="dev", evaluators=(selects,)):
        run = SimpleNamespace(evaluators=evaluators, assembly=assembly)
        results = {name: {"loss": loss, "accuracy": 0.5}}
        return trainer._improves(checkpoints, trainer._score(run, clock, 5, results))

    assert found(2.9)
    assert not found(3.0)
    assert not found(float("nan"))
    assert not found(2.9, name="other")
    assert not found(2.9, evaluators=())
    checkpoints.keep_best = False
    assert not found(2.9)


@pytest.mark.slow
def test_a_run_that_is_prolonged_says_how_its_rates_jump(mini, tmp_path, capsys):
    falling = ("schedule.name=linear", "masking.rate=0.4", "masking.final_rate=0.2", "evaluation.every=0", *LIGHT)
    train(mini("train.steps=6", *falling), tmp_path)
    assert "jumps" not in capsys.readouterr().out
    train(mini("train.steps=12", *falling), tmp_path)
    assert (
        "the length of the run has changed (train.steps from 6 to 12), and its schedules depend on that length: the "
        "learning rate jumps from 0.000167 to 0.0005 and the mask rate jumps from 23.3% to 30.0% at step 7; "
    ) in capsys.readouterr().out


@pytest.mark.slow
def test_no_line_of_the_log_averages_over_two_phases(mini, tmp_path, capsys):
    phases = 'train.phases=[{"steps": 3, "objective": "causal"}, {"mask_rate": 0.3}]'
    train(mini("train.steps=6", phases, "logging.every=4", "evaluation.every=0", *LIGHT), tmp_path)
    shares = {entry["step"]: entry["masked_share"] for entry in read_metrics(tmp_path) if entry["kind"] == "train"}
    assert shares == pytest.approx({3: 0.95, 4: 0.3, 6: 0.3}, abs=0.05)
    (start,) = [entry for entry in read_metrics(tmp_path) if entry["kind"] == "start"]
    assert start["training"] == [[1, "causal"], [4, "30% of tokens masked"]]
    assert start["evaluation"] == {"held_out": "15% of tokens masked, the first 32 of 107 rows"}
    shown = capsys.readouterr().out
    assert "phase 1 of 2: causal; 8 rows of 32 tokens\nevaluations mask tokens, which" in shown
    assert "phase 2 of 2: 30% of tokens masked; 8 rows of 32 tokens\n" in shown


@pytest.fixture
def meter(monkeypatch):
    """A meter of two phases on a machine of 100 FLOP/s, where a token costs 1 FLOP, and the time in seconds."""
    now = [10.0]
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(trainer.hardware, "peak_flops", lambda dtype: SimpleNamespace(flops=100.0))
    objective = SimpleNamespace(counted=frozenset({"dropped"}), flops=lambda rows, length, tokens, knobs: tokens)
    assembly = SimpleNamespace(objectives=[objective] * 2, mesh=SimpleNamespace(size=1))
    config = SimpleNamespace(train=SimpleNamespace(compute_dtype="float32"))
    meter = trainer._Meter(SimpleNamespace(assembly=assembly, config=config))
    meter.phase = 0
    return meter, now


def add(meter, loss, padding, timed=True):
    values = {"loss": loss, "learning_rate": loss / 10, "dropped": 1.0, "padding": padding}
    meter.add((4, 10), {}, {name: np.float32(value) for name, value in values.items()}, timed)


def test_the_first_step_counts_for_the_loss_and_not_for_the_speed(meter):
    meter, now = meter
    now[0] += 3  # the first batch
    with meter.excluding():
        now[0] += 30  # compilation and the first step
        add(meter, 9.0, 0, timed=False)
    for _ in range(3):
        now[0] += 2
        add(meter, 5.0, 0)
    figures = meter.read()
    assert figures["loss"] == pytest.approx(6.0)
    assert figures["tokens_per_second"] == pytest.approx(20)
    with meter.excluding():
        add(meter, 9.0, 0, timed=False)
    assert not {"tokens_per_second", "tokens_per_second_without_padding", "mfu"} & meter.read().keys()


def test_speed_without_padding_and_mfu_leave_out_padding(meter):
    meter, now = meter
    for loss, padding, timed in ((6.0, 0, False), (4.0, 20, True), (2.0, 0, True)):
        if timed:
            now[0] += 2
        add(meter, loss, padding, timed)
    with meter.excluding():
        now[0] += 50  # an evaluation
    figures = meter.read()
    assert figures == {
        "loss": pytest.approx(4.0), "learning_rate": pytest.approx(0.2), "dropped": 3.0,
        "padding": pytest.approx(20 / 120), "tokens_per_second": pytest.approx(20),
        "tokens_per_second_without_padding": pytest.approx(15), "mfu": pytest.approx(0.15),
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(mini, tmp_path, monkeypatch):
    settings = ("train.steps=20", "checkpoint.every=5", "checkpoint.keep=1", "schedule.name=linear", *LIGHT)
    whole = train(mini(*settings), tmp_path / "whole")
    with monkeypatch.context() as faulty:
        faulty.setattr(trainer, "compile_step", with_nan_params(trainer.compile_step, at=12))
        with pytest.raises(UserError, match="step 13: the loss is not a number; the checkpoint of step 12 is kept"):
            train(mini(*settings), tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest() == 12
    assert train(mini(*settings), tmp_path / "run")["params_sha256"] == whole["params_sha256"]


@pytest.mark.slow
def test_nan_at_a_save_is_detected_in_the_arrays(mini, tmp_path, monkeypatch):
    settings = ("train.steps=20", "checkpoint.every=5", "logging.every=100", "evaluation.every=0")
    monkeypatch.setattr(trainer, "compile_step", with_nan_params(trainer.compile_step, at=11))
    with pytest.raises(UserError, match=r"step 12: .*the checkpoint of step 10 is kept"):
        train(mini(*settings), tmp_path)


@pytest.mark.slow
def test_a_held_out_loss_that_is_not_finite_ends_the_run(mini, tmp_path, monkeypatch):
    losses = iter([3.0, math.nan])

    def evaluate(*arguments):
        return held_out_metrics(*arguments) | {"loss": next(losses)}

    held_out_metrics = held_out.evaluate_held_out
    monkeypatch.setattr(held_out, "evaluate_held_out", evaluate)
    settings = ("train.steps=9", "checkpoint.every=4", "evaluation.every=3", *LIGHT)
    with pytest.raises(UserError, match="step 6: the loss on held_out is not finite; the checkpoint of step 4 is kept"):
        train(mini(*settings), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").newest() == 4


@pytest.mark.slow
def test_a_broken_newest_checkpoint_is_passed_over(mini, tmp_path, caplog):
    settings = ("train.steps=10", "checkpoint.every=5")
    whole = train(mini(*settings), tmp_path)
    (tmp_path / "checkpoints" / "999999").mkdir()
    array = max((tmp_path / "checkpoints" / "10").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, "jaxlm"):
        assert train(mini(*settings), tmp_path)["params_sha256"] == whole["params_sha256"]
    assert "999999" in caplog.text
    assert "10" in caplog.text
    assert resumes(tmp_path) == [0, 7]


@pytest.mark.slow
def test_a_step_at_a_million_begins_at_once(mini, tmp_path, monkeypatch):
    config = mini("train.steps=1000002", "checkpoint.every=1000000")
    monkeypatch.setattr(Checkpoints, "restore", lambda self, abstract: _restored(abstract, 1_000_000, data))
    from jaxlm.run import set_up

    data = set_up(config, tmp_path).data.fingerprint
    assert train(config, tmp_path)["step"] == 1_000_002


def _restored(abstract, step, data):
    from jaxlm.runtime.checkpoint import Saved

    state = jax.tree.map(lambda a: jax.device_put(np.full(a.shape, 0.01, a.dtype), a.sharding), abstract)
    return Saved(step, state, {"elapsed_seconds": 1.0, "data": data})


def test_a_batch_that_the_mesh_does_not_divide_is_refused_before_anything_is_read(mini, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.data.table.prepare", lambda config: pytest.fail("data was read"))
    with pytest.raises(UserError, match=r"mesh\.data=3"):
        train(mini("mesh.data=3"), tmp_path)


def test_running_out_of_memory_names_the_settings_to_lower(mini, tmp_path, monkeypatch, capsys):
    from jaxlm.cli import main

    def explode(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")

    mini("train.steps=2")
    monkeypatch.setattr(trainer, "train", explode)
    recipe = Path(__file__).parent.parent / "configs" / "mini.py"
    assert main(["train", f"--config={recipe}", f"--workdir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "out of memory" in error
    assert "train.batch_size" in error


@pytest.mark.slow
def test_metrics_are_valid_json_lines(mini, tmp_path):
    train(mini("train.steps=6"), tmp_path)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("rule", ["nonsense", "/kernel$=yes", "[=yes"])
def test_rules_of_decay_are_refused_before_anything_is_read(mini, tmp_path, monkeypatch, rule):
    monkeypatch.setattr("jaxlm.data.table.prepare", lambda config: pytest.fail("data was read"))
    with pytest.raises(UserError, match=r"optimizer\.decay_mask"):
        train(mini(f"optimizer.decay_mask={rule}"), tmp_path)


@pytest.mark.slow
def test_evaluation_uses_the_rotary_base_of_the_phase(phased):
    _, _, ends, evaluated = phased
    for steps, base in ((4, 20), (9, 50_000)):
        found, again = evaluated[steps]
        assert found == base
        assert again["held_out"]["loss"] == pytest.approx(ends[steps]["evaluation"]["held_out"]["loss"], abs=1e-4)


def test_an_attention_kernel_that_is_not_for_this_machine_is_refused_before_anything_is_read(mini, tmp_path):
    with pytest.raises(UserError, match=r"train.attention=splash: it runs on a TPU, and this is a CPU; .*auto"):
        train(mini("train.attention=splash"), tmp_path)
    assert not (tmp_path / "data.json").exists()
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_the_log_says_what_computes_attention_and_another_kernel_resumes_the_run(mini, tmp_path):
    settings = ("train.steps=2", "train.rematerialise=dots", "model.layer_pattern=gl", "model.window=2", *LIGHT[1:])
    train(mini(*settings), tmp_path)
    train(mini(*settings, "train.attention=xla", "train.rematerialise=none"), tmp_path)
    starts = [entry for entry in read_metrics(tmp_path) if entry["kind"] == "start"]
    assert [entry["attention"] for entry in starts] == [
        "attention by xla (the only one for this platform)",
        "attention by xla (set by train.attention)",
    ]
