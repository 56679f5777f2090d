import json
import math

import pytest

from jaxlm import cli
from jaxlm.errors import UserError
from jaxlm.study.execution import Processes
from jaxlm.study.sweep import dry_run, run_sweep
from tests.study.made_up import replace_training, write_run, write_sweep

ARMS = (
    'Arm("adamw", ("optimizer.name=adamw",), {"optimizer.learning_rate": Range(1e-4, 1e-1)}),'
    ' Arm("muon", ("optimizer.name=muon",), {"optimizer.learning_rate": Range(1e-4, 1e-1),'
    ' "schedule.warmup": (0.01, 0.1)}), Arm("lamb", ("optimizer.name=lamb", "optimizer.learning_rate=0.01")),'
)
pytest.importorskip("optuna")


@pytest.fixture
def searched(tmp_path):
    return write_sweep(tmp_path / "sweep", arms=ARMS, more='search=Search(12, "tune", settings=("train.steps=10",)),')


@pytest.fixture
def training(monkeypatch):
    """Replaces training: a trial ends with a loss of `tune`, a run with one of `held_out`; returns the configs by name.

    The list `kills` holds the numbers of the jobs before which the sweep is interrupted.
    """
    ran, kills, fails = {}, [], []

    def run(self, slot, job):
        if kills and len(ran) >= kills[0]:
            kills.pop(0)
            raise KeyboardInterrupt("stopped by SIGTERM")
        config = json.loads(job.config.read_text())
        ran[job.name] = config
        if job.name in fails:
            return "the loss is not a number"
        name = "tune" if "trial" in job.name else "held_out"
        best = {"adamw": 3e-3, "muon": 3e-2, "lamb": 1e-2}[config["optimizer"]["name"]]
        loss = 4 + abs(math.log(config["optimizer"]["learning_rate"] / best)) + 0.1 * config["train"]["seed"]
        write_run(job.workdir, config, [loss + 1, loss], name)
        return None

    monkeypatch.setattr(Processes, "_run_in", run)
    return ran, kills, fails


def test_each_arm_gets_the_same_number_of_trials_and_runs_with_the_best(searched, training, tmp_path, capsys):
    ran, _, _ = training
    run_sweep(searched, tmp_path / "dir")
    trials = [name for name in ran if "trial" in name]
    assert [sum(name.startswith(arm) for name in trials) for arm in ("adamw", "muon", "lamb")] == [12, 12, 0]
    assert {ran[name]["train"]["seed"] for name in trials} == {1000}
    assert {ran[name]["train"]["steps"] for name in trials} == {10}
    assert "adamw, trial 12 of 12: optimizer.learning_rate=" in capsys.readouterr().out
    for arm in ("adamw", "muon"):
        losses = {name: abs(math.log(ran[name]["optimizer"]["learning_rate"] / (3e-3 if arm == "adamw" else 3e-2)))
                  for name in trials if name.startswith(arm)}  # fmt: skip
        best = ran[min(losses, key=losses.get)]["optimizer"]["learning_rate"]
        runs = [config for name, config in ran.items() if name.startswith(f"{arm}-seed")]
        assert [config["train"]["seed"] for config in runs] == [0, 1]
        assert {config["optimizer"]["learning_rate"] for config in runs} == {best}
        assert {config["train"]["steps"] for config in runs} == {20}


def test_a_search_that_is_killed_twice_ends_with_the_same_trials(searched, training, tmp_path):
    ran, kills, _ = training
    run_sweep(searched, tmp_path / "whole")
    whole = dict(ran)
    ran.clear()
    kills += [4, 13]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(searched, tmp_path / "dir")
    run_sweep(searched, tmp_path / "dir")
    assert sorted(ran) == sorted(whole)
    assert ran == whole
    folders = sorted((tmp_path / "dir" / "search").iterdir())
    assert [len(list(folder.glob("trial-*/metrics.jsonl"))) for folder in folders] == [12, 12]
    assert [json.loads((folder / "chosen.json").read_text())["trials"] for folder in folders] == [12, 12]
    before = len(ran)
    run_sweep(searched, tmp_path / "dir")
    assert len(ran) == before


def test_a_trial_that_fails_counts_and_is_not_chosen(searched, training, tmp_path):
    ran, _, fails = training
    fails += [f"adamw, trial {number}" for number in range(11)]
    run_sweep(searched, tmp_path / "dir")
    last = ran["adamw, trial 11"]["optimizer"]["learning_rate"]
    assert {c["optimizer"]["learning_rate"] for name, c in ran.items() if name.startswith("adamw-seed")} == {last}
    fails += [f"muon, trial {number}" for number in range(12)]
    with pytest.raises(UserError, match="arm muon: all 12 trials failed; narrow its search"):
        run_sweep(searched, tmp_path / "other")


def test_a_search_that_changes_begins_anew(searched, training, tmp_path):
    ran, _, _ = training
    run_sweep(searched, tmp_path / "dir")
    before = len(ran)
    write_sweep(
        searched,
        arms=ARMS.replace("1e-4, 1e-1)}),", "1e-3, 1e-1)}),", 1),
        more='search=Search(12, "tune", settings=("train.steps=10",)),',
    )
    run_sweep(searched, tmp_path / "dir")
    assert len(list((tmp_path / "dir" / "search").iterdir())) == 3
    assert len(ran) >= before


def test_a_dry_run_says_that_trials_come_first(searched, tmp_path, capsys):
    assert cli.main(["sweep", str(searched), f"--workdir={tmp_path / 'dir'}", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "adamw: 0 of 12 trials are done" in out
    assert "muon: 0 of 12 trials are done" in out
    rows = dry_run(searched, tmp_path / "dir", [], [], [])
    assert len(rows) == 6
    assert cli.main(["sweep", str(searched), f"--workdir={tmp_path / 'dir'}", "--emit=commands"]) == 1
    assert "the search of this sweep has to end before its runs are known" in capsys.readouterr().err


def test_a_sweep_without_a_search_needs_no_optuna(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    replace_training(monkeypatch)
    folder = write_sweep(tmp_path / "sweep")
    assert run_sweep(folder, tmp_path / "dir")["failure"] is None
    write_sweep(folder, arms=ARMS, more='search=Search(2, "tune"),')
    with pytest.raises(UserError, match="this sweep has a search, which needs optuna: pip install"):
        run_sweep(folder, tmp_path / "other")
