import csv
import json
import re

import pytest

from jaxlm import cli
from jaxlm.errors import UserError
from jaxlm.setting_type import Setting
from jaxlm.settings import SETTINGS
from jaxlm.study.design import read_sweep
from jaxlm.study.grid import planned_runs, state_of
from jaxlm.study.sweep import dry_run, duration, run_sweep
from tests.study.made_up import ARMS, replace_training, write_run, write_sweep


def names(folder, *overrides):
    return [run.name for run in planned_runs(*read_sweep(folder), list(overrides))]


def test_the_grid_is_a_function_of_the_file(tmp_path):
    first = names(write_sweep(tmp_path))
    assert first == names(tmp_path)
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in first] == [
        "slow-seed0", "fast-seed0", "30-seed0", "slow-seed1", "fast-seed1", "30-seed1",
    ]  # fmt: skip
    assert len({name[-8:] for name in first}) == 6
    write_sweep(tmp_path, arms=ARMS.replace("0.01", "0.02"))
    assert [a == b for a, b in zip(first, names(tmp_path), strict=True)] == [True, False, True] * 2


def test_a_name_stays_the_same_when_a_later_version_has_more_settings(tmp_path, monkeypatch):
    folder = write_sweep(tmp_path)
    before = names(folder)
    monkeypatch.setitem(SETTINGS["data"], "future", Setting(3, "a setting of a later version"))
    assert names(folder) == before
    assert names(folder, "data.future=4") != before


def test_a_name_depends_on_what_the_results_depend_on(tmp_path):
    folder = write_sweep(tmp_path)
    assert names(folder) == names(folder, "logging.every=3", "data.cache=elsewhere", "checkpoint.every=7")
    assert not set(names(folder)) & set(names(folder, "data.sequence_length=32"))


@pytest.mark.parametrize(
    ("arms", "overrides", "sentence"),
    [
        ('Arm("a"), Arm("b"),', (), "the arms a and b have the same settings; change or remove one"),
        ('Arm("a", ("train.step=3",)),', (), "arm a: there is no setting train.step; did you mean train.steps?"),
        ('Arm("a", ("masking.rate=2",)),', (), "arm a: masking.rate=2.0: must be between 0 and 1"),
        ('Arm("a", ("train.seed=2",)),', (), "the arm a sets train.seed; the seeds are those of the sweep"),
        (ARMS, ("masking.rate=0.2",), "--config.masking.rate would be the same in all runs, but the arm 30 % sets it"),
        (ARMS, ("train.seed=2",), "--config.train.seed would be the same in all runs"),
    ],
)
def test_arms_that_cannot_be_run_are_named_before_anything_is_written(tmp_path, arms, overrides, sentence):
    folder = write_sweep(tmp_path / "sweep", arms=arms)
    with pytest.raises(UserError) as error:
        run_sweep(folder, tmp_path / "dir", overrides)
    assert sentence in str(error.value)
    assert not (tmp_path / "dir").exists()


def test_a_base_may_lie_beside_the_sweep_and_evaluation_sets_are_checked(tmp_path):
    folder = write_sweep(tmp_path, base="own.py", arms='Arm("a"),', evaluation="valid")
    (tmp_path / "own.py").write_text(
        "from jaxlm.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.data.held_out = ('dev=dev.txt',)\n    return config\n"
    )
    with pytest.raises(UserError, match="arm a: there is no evaluation set valid; the sets are dev"):
        planned_runs(*read_sweep(folder))


def test_a_sweep_makes_each_run_once_and_says_what_it_shows(tmp_path, monkeypatch, capsys):
    folder, root, ran = write_sweep(tmp_path / "sweep", seeds=5), tmp_path / "dir", replace_training(monkeypatch)
    assert cli.main(["sweep", str(folder), f"--workdir={root}"]) == 0
    text = capsys.readouterr().out
    assert len(ran) == 15
    assert ran[:3] == names(folder)[:3]  # all arms with a seed before the next seed
    assert "15/15  30 %, seed 4: loss 4.521" in text
    assert "fast lowers the loss by 0.070 nats (95% interval -0.070 to -0.070, 5 seeds, p < 0.001): better." in text
    assert re.search(r"^30 % +5 .*\+0\.150 .*worse$", text, re.MULTILINE)

    rows = list(csv.DictReader((root / "results.csv").open()))
    assert [(row["arm"], row["seed"], row["state"]) for row in rows[:2]] == [
        ("slow", "0", "done"),
        ("slow", "1", "done"),
    ]
    assert float(rows[0]["value"]) == float(rows[0]["held_out.loss"]) == pytest.approx(3.97)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"}
    assert cli.main(["sweep", str(folder), f"--workdir={root}"]) == 0
    assert "15 of 15 runs are done already" in capsys.readouterr().out
    assert len(ran) == 15
    assert {path: path.read_bytes() for path in before} == before


def test_json_has_the_answer_and_the_arms(tmp_path, monkeypatch, capsys):
    replace_training(monkeypatch)
    assert cli.main(["sweep", str(write_sweep(tmp_path / "sweep")), f"--workdir={tmp_path / 'dir'}", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(arm["arm"], arm["n"]) for arm in content["arms"]] == [("slow", 2), ("fast", 2), ("30 %", 2)]
    assert content["arms"][1]["difference"]["mean"] == pytest.approx(-0.07)
    assert content["failure"] is None


def test_a_changed_arm_runs_anew_and_its_old_runs_are_kept_and_used_again(tmp_path, monkeypatch):
    folder, root, ran = write_sweep(tmp_path / "sweep"), tmp_path / "dir", replace_training(monkeypatch)
    run_sweep(folder, root)
    old = names(folder)
    write_sweep(folder, arms=ARMS.replace("0.01", "0.02"))
    run_sweep(folder, root)
    assert ran[6:] == [name for name in names(folder) if name.startswith("fast")]
    assert sorted(path.name for path in (root / "aside").iterdir()) == sorted(n for n in old if n.startswith("fast"))
    assert sorted(path.stem for path in (root / "configs").iterdir()) == sorted(names(folder))
    write_sweep(folder)
    run_sweep(folder, root)
    assert len(ran) == 8
    assert sorted(path.name for path in (root / "runs").iterdir()) == sorted(old)


def test_a_sweep_may_start_from_the_runs_of_another_with_the_same_seeds(tmp_path, monkeypatch):
    first = write_sweep(tmp_path / "first", arms='Arm("15 %"), Arm("30 %", ("masking.rate=0.3",)),')
    replace_training(monkeypatch)
    run_sweep(first, tmp_path / "dir")
    link = tmp_path / "dir" / "by_seed" / "30" / "1"
    assert json.loads((link / "config.json").read_text())["train"]["seed"] == 1
    assert json.loads((link / "config.json").read_text())["masking"]["rate"] == 0.3
    arms = f'Arm("a", ("data.path={tmp_path}/dir/by_seed/15/{{seed}}",)), Arm("b", ("data.path={tmp_path}/{{seed}}",)),'
    second = planned_runs(*read_sweep(write_sweep(tmp_path / "second", arms=arms)))
    assert [run.config.data.path[0].rpartition("/")[2] for run in second] == ["0", "0", "1", "1"]
    assert [run.config.train.seed for run in second] == [0, 0, 1, 1]
    write_sweep(first, arms='Arm("15 %"),')
    run_sweep(first, tmp_path / "dir")
    assert not link.exists()
    assert (tmp_path / "dir" / "by_seed" / "15" / "1" / "metrics.jsonl").exists()


def test_a_failing_arm_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    folder, root, broken = write_sweep(tmp_path / "sweep"), tmp_path / "dir", [0.01]
    ran = replace_training(
        monkeypatch,
        lambda config: "the loss is not a number" if config["optimizer"]["learning_rate"] in broken else None,
    )
    assert cli.main(["sweep", str(folder), f"--workdir={root}"]) == 1
    out, err = capsys.readouterr()
    assert len(ran) == 6
    assert err == (
        "jaxlm: 2 of 6 runs failed; the others are done: fast, seeds 0, 1: the loss is not a number. The same command"
        " tries the failed ones again\n"
    )
    assert "fast, seed 0: failed: the loss is not a number" in out
    assert re.search(r"^30 % +2 .*\+0\.150", out, re.MULTILINE)  # the others' results are shown
    runs = planned_runs(*read_sweep(folder))
    assert [state_of(run, root) for run in runs] == ["done", "failed", "done"] * 2
    assert [row["state"] for row in csv.DictReader((root / "results.csv").open())].count("failed") == 2
    broken.clear()
    assert cli.main(["sweep", str(folder), f"--workdir={root}"]) == 0
    assert len(ran) == 8
    assert not list((root / "failed").iterdir())


def test_all_failures_are_named(tmp_path, monkeypatch):
    folder = write_sweep(tmp_path / "sweep")
    replace_training(monkeypatch, lambda config: f"no {config['masking']['rate']}" if config["train"]["seed"] else None)
    failure = run_sweep(folder, tmp_path / "dir")["failure"]
    assert failure.startswith("3 of 6 runs failed; the others are done: slow, seed 1: no 0.15; fast, seed 1: no 0.15;"
                              " 30 %, seed 1: no 0.3. The same command")  # fmt: skip


def test_a_metric_that_the_runs_lack_is_named_and_the_runs_are_kept(tmp_path, monkeypatch):
    folder, root, ran = write_sweep(tmp_path / "sweep", metric="f1"), tmp_path / "dir", replace_training(monkeypatch)
    with pytest.raises(UserError, match=r"has no metric f1 of held_out; it has loss, accuracy, n"):
        run_sweep(folder, root)
    count = len(ran)
    with pytest.raises(UserError, match="has no metric f1"):
        run_sweep(folder, root)
    assert len(ran) == count
    write_sweep(folder)
    assert run_sweep(folder, root)["failure"] is None
    assert len(ran) == 6
    statement = json.loads((root / "sweep.json").read_text())
    assert [before["metric"] for before in statement["history"]] == ["f1"]
    assert statement["runs_done_before"] == count


def test_a_sweep_is_read_at_the_update_that_it_states(tmp_path, monkeypatch):
    replace_training(monkeypatch)
    folder = write_sweep(tmp_path / "sweep", more="at=10,")
    assert run_sweep(folder, tmp_path / "dir")["arms"][0]["mean"] == pytest.approx(5.0205)
    write_sweep(folder, more="at=15,")
    with pytest.raises(UserError, match="was not evaluated at update 15; it was at 10, 20"):
        run_sweep(folder, tmp_path / "dir")


def test_only_the_chosen_arms_and_seeds_run(tmp_path, monkeypatch):
    folder, root, ran = write_sweep(tmp_path / "sweep"), tmp_path / "dir", replace_training(monkeypatch)
    run_sweep(folder, root, arms=["slow", "30 %"], seeds=[1])
    assert [name[:-9] for name in ran] == ["slow-seed1", "30-seed1"]
    with pytest.raises(UserError, match="--arms: there is no arm fats; the arms are slow, fast, 30 %"):
        run_sweep(folder, root, arms=["fats"])
    with pytest.raises(UserError, match="--seeds: 7 is not a seed of the sweep; they are 0, 1"):
        run_sweep(folder, root, seeds=[7])


def test_a_dry_run_lists_what_would_run_and_its_time(tmp_path, monkeypatch, capsys):
    folder, root = write_sweep(tmp_path / "sweep"), tmp_path / "dir"
    ran = replace_training(monkeypatch)
    assert cli.main(["sweep", str(folder), f"--workdir={root}", "--dry-run"]) == 0
    assert "6 of 6 runs are missing; how long they take is known when the first has ended" in capsys.readouterr().out
    assert not root.exists()
    run_sweep(folder, root, seeds=[0])
    run = planned_runs(*read_sweep(folder))[4]
    write_run(
        run.workdir(root), json.loads((root / "configs" / f"{run.name}.json").read_text()), [5.0, 4.0], done=False
    )
    rows = dry_run(folder, root, [], [], [])
    assert [row["state"] for row in rows] == ["done", "done", "done", "new", "started", "new"]
    assert [row["seconds"] for row in rows] == [0, 0, 0, 22, 0, 22]  # as long as those that are done
    assert cli.main(["sweep", str(folder), f"--workdir={root}", "--dry-run"]) == 0
    assert "3 of 6 runs are missing: about 44 s" in capsys.readouterr().out
    assert len(ran) == 3


def test_a_run_with_a_time_budget_takes_that_long(tmp_path):
    folder = write_sweep(tmp_path, arms='Arm("a", ("train.steps=none", "train.minutes=5")),')
    assert [row["seconds"] for row in dry_run(folder, tmp_path / "dir", [], [], [])] == [300, 300]
    assert [duration(seconds) for seconds in (0.2, 89, 90, 3600, 5400, 7300)] == [
        "about 1 s", "about 89 s", "about 2 min", "about 60 min", "about 2 h", "about 2 h",
    ]  # fmt: skip


def test_files_of_others_are_not_touched(tmp_path, monkeypatch):
    folder = write_sweep(tmp_path / "sweep")
    replace_training(monkeypatch)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    with pytest.raises(UserError, match=r"contains files that are not of a sweep \(thesis.tex\); name a new directory"):
        run_sweep(folder, tmp_path / "mine")
    with pytest.raises(UserError, match="is a file; name a directory"):
        run_sweep(folder, folder / "sweep.py")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="--workers=0: must be at least 1"):
        run_sweep(folder, tmp_path / "dir", workers=0)


def test_two_sweeps_do_not_share_a_directory_at_once(tmp_path, monkeypatch):
    from filelock import FileLock

    folder, root = write_sweep(tmp_path / "sweep"), tmp_path / "dir"
    replace_training(monkeypatch)
    run_sweep(folder, root)
    with FileLock(root / "lock"), pytest.raises(UserError, match="is in use by another sweep"):
        run_sweep(folder, root)
