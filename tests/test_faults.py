"""The real commands under faults: each ends in the same parameters, or in one sentence with nothing lost."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests import faults
from tests.conftest import ROOT, write_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("faults") / "text.txt", 2000)


@pytest.fixture
def make(text, tmp_path):
    """Makes new scenes."""
    numbers = itertools.count()
    return lambda: faults.Scene(tmp_path / f"scene-{next(numbers)}", text)


@pytest.fixture(scope="module")
def reference(text, tmp_path_factory) -> faults.Reference:
    return faults.refer(faults.Scene(tmp_path_factory.mktemp("reference"), text))


@pytest.fixture(scope="module")
def part(text, tmp_path_factory) -> faults.Scene:
    """A run that ended after two thirds of its updates."""
    scene = faults.Scene(tmp_path_factory.mktemp("part"), text)
    assert scene.run_here("train.steps=40").status == 0
    return scene


def demand(results, count: int) -> list[faults.Result]:
    """Demands that each of so many faults ended as promised."""
    results = list(results)
    assert all(result.good for result in results), "\n".join(result.line() for result in results)
    assert len(results) == count
    return results


def test_kills_at_random_moments_change_nothing(make, reference):
    demand(faults.kills(make, reference, random.Random(3), 5), 5)


def test_signals_save_and_the_same_command_goes_on(make, reference):
    moments = ("prepare", "steps", "steps")
    results = demand(
        faults.signals(make, reference, random.Random(0), moments, ("SIGTERM", "SIGTERM", "SIGINT")), len(moments)
    )
    assert "stopped by SIGTERM; step " in results[1].outcome
    assert "stopped by SIGINT; step " in results[2].outcome


def test_a_full_disk_is_said_and_the_same_command_goes_on(make, reference):
    demand(faults.full_disks(make, reference, random.Random(0), 2), 2)


def test_a_folder_that_cannot_be_written_is_said(part, tmp_path, reference):
    try:
        with faults.read_only(tmp_path):
            pass
    except PermissionError as error:
        pytest.skip(str(error))
    results = demand(faults.read_only_folders(part, tmp_path / "copy", reference), 4)
    assert [result.outcome.startswith('"') for result in results] == [True, True, True, False]
    assert all("cannot " in result.outcome for result in results[:3])


def test_a_damaged_file_is_noticed_or_harmless(part, tmp_path, reference):
    demand(faults.damage(part, tmp_path / "copy", reference, random.Random(0), 16), 16)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"directory": "x"}', '{"directory": "/", "fingerprint": "f", "crc32": 1}']
)
def test_a_damaged_data_json_is_written_anew(part, tmp_path, content, caplog):
    scene = part.copied(tmp_path / "copy")
    record = scene.workdir / "data.json"
    whole = record.read_text()
    record.write_text(content)
    outcome = scene.run_here("train.steps=40")
    assert outcome.status == 0, outcome.errors
    assert "data.json is damaged" in caplog.text
    assert json.loads(record.read_text())["fingerprint"] == json.loads(whole)["fingerprint"]


def test_nan_parameters_stop_the_run_with_the_last_good_step_kept(part, tmp_path, reference):
    demand(faults.not_a_number(part, tmp_path / "copy", reference, random.Random(1), 1), 1)


def test_clocks_and_file_times_change_nothing(make, reference):
    demand(faults.clocks(make, reference, random.Random(0), 1), 1)


def test_another_working_directory_changes_nothing(part, tmp_path, reference):
    results = demand(faults.folders(part, tmp_path / "elsewhere", reference), 3)
    assert [result.outcome.startswith('"') for result in results] == [False, True, False]
    assert "data.path" in results[1].outcome


def test_nothing_leaks(make):
    samples, outcome = faults.leaks(make(), 400, 40, 10)
    assert len(samples) >= 5
    assert faults.judge_leaks(samples, outcome).good, samples


def test_what_is_judged_good():
    sentence, trace = "jaxlm: the disk is full\n", "Traceback (most recent call last):\n"
    same, other = (faults.Outcome(0, f"params sha256 {digits}\n", "") for digits in ("aa", "bb"))
    said = faults.Outcome(1, "", f"a warning\n{sentence}")
    good = [(same, None), (said, None), (said, same)]
    bad = [(other, None), (said, other), (said, said), (faults.Outcome(-15, "", ""), same)]
    bad += [(faults.Outcome(1, "", text), same) for text in (sentence + trace, sentence * 2, "words\n")]
    bad += [(faults.Outcome(faults.HUNG, "", sentence), same), (faults.Outcome(2, "", sentence), same)]
    for expected, cases in ((True, good), (False, bad)):
        for outcome, again in cases:
            assert faults.judge("", "", "", outcome, "aa", again).good is expected, (outcome, again)
    flat = [faults.Sample(step, 10**9 + step, 30, 40) for step in range(10, 200, 10)]
    assert faults.judge_leaks(flat, same).good
    for leak in ({"memory": 2 * 10**9}, {"files": 33}, {"threads": 43}):
        assert not faults.judge_leaks([*flat[:-6], *(sample._replace(**leak) for sample in flat[-6:])], same).good


def test_the_soak_reports_each_fault_and_its_failures(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "scripts" / "soak"), "--faults=nan", "--times=1", "--sentences=2000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["nan", "1", "0", "1", "0"]
    assert not any(tmp_path.iterdir())
