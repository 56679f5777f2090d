"""A sweep with real runs: killed, started again, and reported."""

import csv
import signal
import subprocess
import time

import pytest

from jaxlm.config import save_config
from jaxlm.runtime.run_log import read_metrics
from jaxlm.study.design import read_sweep
from jaxlm.study.execution import Job, Processes
from jaxlm.study.grid import is_done, planned_runs
from tests.conftest import command, environment
from tests.study.made_up import write_sweep

pytestmark = pytest.mark.slow

ARMS = 'Arm("slow"), Arm("broken", ("data.path=not_there",)), Arm("fast", ("optimizer.learning_rate=0.01",)),'


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def contents(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock"}


def test_a_sweep_that_is_killed_in_its_fourth_run_goes_on(mini, tmp_path):
    folder, root = write_sweep(tmp_path / "sweep", base="base.json", arms=ARMS), tmp_path / "dir"
    save_config(mini("train.steps=20"), folder / "base.json")
    runs = planned_runs(*read_sweep(folder))
    arguments = command("sweep", folder, f"--workdir={root}")
    first = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    fourth = runs[3].workdir(root)
    wait_for(lambda: (fourth / "lock").exists())
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = [run for run in runs if run.workdir(root).exists() and is_done(run.workdir(root))]
    assert [run.arm for run in done] == ["slow", "fast"]
    before = {run.name: contents(run.workdir(root)) for run in done}

    second = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300)
    assert second.returncode == 1
    assert second.stderr.endswith(
        "jaxlm: 2 of 6 runs failed; the others are done: broken, seeds 0, 1: there is no file or folder not_there;"
        " check the path. The same command tries the failed ones again\n"
    )
    assert {run.name: contents(run.workdir(root)) for run in done} == before
    states = {row["run"]: row["state"] for row in csv.DictReader((root / "results.csv").open())}
    assert [states[run.name] for run in runs] == ["done", "failed", "done"] * 2
    assert len([line for line in second.stdout.splitlines() if "seed 0: loss" in line]) == 0  # they are not made again

    report = subprocess.run(command("report", root), env=environment(), capture_output=True, text=True, timeout=120)
    assert report.returncode == 0
    page = (root / "report.html").read_text()
    assert page.count("not_there; check the path") == 2


def test_a_run_that_is_interrupted_is_resumed_and_ends_with_the_same_bits(mini, tmp_path):
    """Two processes at a time, stopped by a signal: both save, and the sweep goes on from there."""
    folder = write_sweep(
        tmp_path / "sweep", base="base.json", arms='Arm("a"), Arm("b", ("masking.rate=0.3",)),', seeds=1
    )
    save_config(mini("train.steps=20"), folder / "base.json")
    settings = 'settings=("train.steps=150",)'
    (folder / "sweep.py").write_text(
        (folder / "sweep.py").read_text().replace('settings=("train.steps=20",)', settings)
    )
    runs = planned_runs(*read_sweep(folder))
    checksums = []
    for stop in (False, True):
        root = tmp_path / f"dir{stop}"
        arguments = command("sweep", folder, f"--workdir={root}", "--workers=2")
        if stop:
            process = subprocess.Popen(
                arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            logs = [run.workdir(root) / "metrics.jsonl" for run in runs]
            wait_for(lambda logs=logs: all(log.exists() and log.read_text().count('"train"') > 3 for log in logs))
            process.terminate()
            _, err = process.communicate(timeout=120)
            assert process.returncode == 1
            assert err.startswith("jaxlm: stopped by SIGTERM")
            assert not any(is_done(run.workdir(root)) for run in runs)
            assert all(list((run.workdir(root) / "checkpoints").iterdir()) for run in runs)
        subprocess.run(arguments, env=environment(), check=True, capture_output=True, timeout=300)
        checksums.append([read_metrics(run.workdir(root))[-1]["params_sha256"] for run in runs])
    assert checksums[0] == checksums[1]
    assert checksums[0][0] != checksums[0][1]


def test_a_process_that_ends_without_a_sentence_is_described(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with Processes(1) as processes:
        sentence = processes.submit(Job("a", tmp_path / "config.json", tmp_path / "run")).result()
    assert "config.json is not valid JSON" in sentence
