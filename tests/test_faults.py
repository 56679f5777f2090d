"""Real commands under faults: each ends with the same parameters, or with one message and nothing lost."""

import itertools
import json
import random
import sys
import tempfile
from pathlib import Path

import pytest

from tests import faults
from tests.conftest import write_text
from tests.sandbox import HUNG, Outcome, Reference, Result, Sandbox, check_outcome, reference_run
from tests.scripts import load_script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("faults") / "text.txt", 2000)


@pytest.fixture
def make(text, tmp_path):
    """Returns a function that makes a new sandbox."""
    numbers = itertools.count()
    return lambda: Sandbox(tmp_path / f"sandbox-{next(numbers)}", text)


@pytest.fixture(scope="module")
def reference(text, tmp_path_factory) -> Reference:
    return reference_run(Sandbox(tmp_path_factory.mktemp("reference"), text))


@pytest.fixture(scope="module")
def partial(text, tmp_path_factory) -> Sandbox:
    """A run that ended after two thirds of its steps."""
    sandbox = Sandbox(tmp_path_factory.mktemp("partial"), text)
    assert sandbox.run_in_process("train.steps=40").status == 0
    return sandbox


def require_passed(results, count: int) -> list[Result]:
    """Returns the results; fails unless there are `count` of them and all passed."""
    results = list(results)
    assert all(result.passed for result in results), "\n".join(result.line() for result in results)
    assert len(results) == count
    return results


def test_kills_at_random_moments_change_nothing(make, reference):
    require_passed(faults.kills(make, reference, random.Random(3), 5), 5)


def test_a_signal_saves_and_the_same_command_resumes(make, reference):
    moments = ("prepare", "steps", "steps")
    names = ("SIGTERM", "SIGTERM", "SIGINT")
    results = require_passed(faults.signals(make, reference, random.Random(0), moments, names), len(moments))
    assert "stopped by SIGTERM; step " in results[1].outcome
    assert "stopped by SIGINT; step " in results[2].outcome


def test_a_full_disk_is_reported_and_the_same_command_resumes(make, reference):
    require_passed(faults.full_disks(make, reference, random.Random(0), 2), 2)


def test_a_read_only_directory_is_reported(partial, tmp_path, reference):
    try:
        with faults.read_only(tmp_path):
            pass
    except PermissionError as error:
        pytest.skip(str(error))
    results = require_passed(faults.read_only_folders(partial, tmp_path / "copy", reference), 4)
    assert [result.outcome.startswith('"') for result in results] == [True, True, True, False]
    assert all("cannot " in result.outcome for result in results[:3])


def test_a_damaged_file_is_detected_or_harmless(partial, tmp_path, reference):
    require_passed(faults.damage(partial, tmp_path / "copy", reference, random.Random(0), 16), 16)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"directory": "x"}', '{"directory": "/", "fingerprint": "f", "crc32": 1}']
)
def test_a_damaged_data_json_is_rewritten(partial, tmp_path, content, caplog):
    sandbox = partial.copy_to(tmp_path / "copy")
    record = sandbox.workdir / "data.json"
    whole = record.read_text()
    record.write_text(content)
    outcome = sandbox.run_in_process("train.steps=40")
    assert outcome.status == 0, outcome.errors
    assert "data.json is damaged" in caplog.text
    assert json.loads(record.read_text())["fingerprint"] == json.loads(whole)["fingerprint"]


def test_nan_params_stop_the_run_and_the_last_good_step_is_kept(partial, tmp_path, reference):
    require_passed(faults.nan_params(partial, tmp_path / "copy", reference, random.Random(1), 1), 1)


def test_clocks_and_file_times_change_nothing(make, reference):
    require_passed(faults.clocks(make, reference, random.Random(0), 1), 1)


def test_another_working_directory_changes_nothing(partial, tmp_path, reference):
    results = require_passed(faults.folders(partial, tmp_path / "elsewhere", reference), 3)
    assert [result.outcome.startswith('"') for result in results] == [False, True, False]
    assert "data.path" in results[1].outcome


def test_a_run_does_not_leak(make):
    samples, outcome = faults.leaks(make(), 400, 40, 10)
    assert len(samples) >= 5
    assert faults.check_leaks(samples, outcome).passed, samples


def test_which_outcomes_pass():
    message, trace = "jaxlm: the disk is full\n", "Traceback (most recent call last):\n"
    same, other = (Outcome(0, f"params sha256 {digits}\n", "") for digits in ("aa", "bb"))
    failed = Outcome(1, "", f"a warning\n{message}")
    good = [(same, None), (failed, None), (failed, same)]
    bad = [(other, None), (failed, other), (failed, failed), (Outcome(-15, "", ""), same)]
    bad += [(Outcome(1, "", text), same) for text in (message + trace, message * 2, "words\n")]
    bad += [(Outcome(HUNG, "", message), same), (Outcome(2, "", message), same)]
    for expected, cases in ((True, good), (False, bad)):
        for outcome, resumed in cases:
            assert check_outcome("", "", "", outcome, "aa", resumed).passed is expected, (outcome, resumed)
    flat = [faults.Sample(step, 10**9 + step, 30, 40) for step in range(10, 200, 10)]
    assert faults.check_leaks(flat, same).passed
    for leak in ({"memory": 2 * 10**9}, {"files": 33}, {"threads": 43}):
        assert not faults.check_leaks([*flat[:-6], *(one._replace(**leak) for one in flat[-6:])], same).passed


def test_the_soak_reports_each_fault_and_its_failures(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["soak", "--faults=nan", "--times=1", "--sentences=2000"])
    assert load_script("soak").main() == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["nan", "1", "0", "1", "0"]
    assert not any(tmp_path.iterdir())
