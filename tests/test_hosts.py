"""A run of several processes sees the same rows, masks and losses as one, and its processes end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.runtime.run_log import read_metrics
from jaxlm.trainer import train
from tests.conftest import ROOT, environment, mini_overrides

pytestmark = pytest.mark.slow

# In float32, the losses of a resumed run differ from those of an uninterrupted run only by rounding.
SETTINGS = ("train.compute_dtype=float32", "schedule.name=constant", "schedule.warmup=0", "logging.every=1",
            "checkpoint.every=4", "evaluation.every=0", "masking.scheme=whole_word", "model.dropout=0.1")  # fmt: skip
HEARTBEAT = 5
# Of several processes only the first uses the compilation cache; the others compile every program each time.
FAST_TO_COMPILE = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


class Launched:
    """A running `scripts/launch_local COUNT train ...` with its work directory."""

    def __init__(self, count: int, workdir: Path, text_file: Path, cache: Path, *settings: str) -> None:
        self.workdir = workdir
        given = (*mini_overrides(text_file, cache), *SETTINGS, f"mesh.heartbeat_seconds={HEARTBEAT}", *settings)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "launch_local"), str(count), "train",
             f"--config={ROOT / 'configs' / 'mini.py'}", f"--workdir={workdir}", *(f"--config.{s}" for s in given)],
            env=environment() | FAST_TO_COMPILE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        while max(losses(self.workdir), default=0) < step:
            assert self.process.poll() is None, self.end()
            time.sleep(0.05)

    def signal(self, index: int, number: signal.Signals) -> None:
        """Sends a signal to one of the processes."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            ours = f"--workdir={self.workdir}" in words and words[-2] == f"--config.mesh.process_id={index}"
            if ours:
                os.kill(int(entry.name), number)
                return
        raise AssertionError(f"process {index} does not exist: {self.end()}")

    def end(self) -> tuple[int, str, str]:
        """Waits for the end and returns (exit status, standard output, standard error)."""
        out, err = self.process.communicate()
        assert "Traceback" not in err, err
        assert "Check failure" not in err, err
        return self.process.returncode, out, err


def losses(workdir: Path) -> dict[int, float]:
    if not (workdir / "metrics.jsonl").is_file():
        return {}
    return {entry["step"]: entry["loss"] for entry in read_metrics(workdir) if entry["kind"] == "train"}


def checksum(out: str) -> str:
    return re.search(r"^params sha256 ([0-9a-f]{64})$", out, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def single(mini, tmp_path_factory):
    """The losses by step of the same run as one process, for 400 steps."""
    workdir = tmp_path_factory.mktemp("single")
    train(mini(*SETTINGS, "train.steps=400", "checkpoint.every=200"), workdir)
    return losses(workdir)


def assert_same(found: dict[int, float], expected: dict[int, float], steps: range) -> None:
    assert set(steps) <= set(found)
    worst = max(abs(found[step] - expected[step]) for step in steps)
    assert worst < 2e-5, worst


def test_four_processes_see_the_rows_masks_and_dropout_of_one(tmp_path):
    program, port = str(ROOT / "tests" / "train_on_mesh.py"), free_port()
    axes = {"slices": 2, "tensor": 2, "coordinator": f"127.0.0.1:{port}", "processes": 4}
    given = [{}, *({**axes, "process_id": index} for index in range(4))]
    flags = FAST_TO_COMPILE | {"JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen([sys.executable, program, json.dumps(axes), "float32"], env=environment() | flags,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for axes in given
    ]  # fmt: skip
    ends = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 5, [err[-2000:] for _, err in ends]
    one, *four = (json.loads(out.splitlines()[-1]) for out, _ in ends)
    expected = one["runs"]["float32"]
    assert len(set(expected["masks"])) == 20, "two steps have the same masks"
    for result in four:
        assert result["mesh"] == {"slice": 2, "data": 1, "fsdp": 1, "tensor": 2}
        run = result["runs"]["float32"]
        for what in ("rows", "masks", "dropout"):
            assert run[what] == expected[what], what
        assert max(abs(a - b) for a, b in zip(run["losses"], expected["losses"], strict=True)) < 1e-5


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_signal_to_one_of_two_processes_stops_both_at_one_step_and_the_run_can_be_resumed(
    text_file, cache, single, tmp_path
):
    parts, uninterrupted = tmp_path / "parts", tmp_path / "uninterrupted"
    run = Launched(2, parts, text_file, cache, "train.steps=1000000")
    run.wait_for_step(6)
    run.signal(1, signal.SIGTERM)
    status, _, err = run.end()
    assert status == 1
    messages = re.findall(r"^.*jaxlm: .*$", err, re.MULTILINE)
    assert len(messages) == 1, err
    step = int(re.fullmatch(r"jaxlm: stopped by a signal to one of .*; step (\d+) is saved, .*", messages[0])[1])
    assert str(step) in os.listdir(parts / "checkpoints")
    assert max(losses(parts)) == step < 390

    # Resumed on two processes, the run has the bits of two uninterrupted ones, and the losses of one to rounding.
    status, out, err = Launched(2, parts, text_file, cache, f"train.steps={step + 5}").end()
    assert status == 0, err
    status, expected, err = Launched(2, uninterrupted, text_file, cache, f"train.steps={step + 5}").end()
    assert status == 0, err
    assert checksum(out) == checksum(expected)
    assert_same(losses(parts), single, range(1, step + 6))


def test_after_a_kill_the_other_three_processes_report_it_and_one_process_can_resume(
    mini, text_file, cache, single, tmp_path
):
    run = Launched(4, tmp_path, text_file, cache, "train.steps=1000000", "mesh.fsdp=2")
    run.wait_for_step(10)
    run.signal(2, signal.SIGKILL)
    killed = time.monotonic()
    status, _, err = run.end()
    assert time.monotonic() - killed < 60
    assert status == 137
    messages = re.findall(r"^(?:\[\d\] )?jaxlm: (.*)$", err, re.MULTILINE)
    assert len(messages) == 3, err
    assert all(sentence.startswith(f"process 2 has not responded for {HEARTBEAT} s") for sentence in messages), err

    last = max(losses(tmp_path))
    resumed = train(mini(*SETTINGS, f"train.steps={last + 5}"), tmp_path)
    assert resumed["step"] == last + 5
    (start,) = [entry["step"] for entry in read_metrics(tmp_path) if entry["kind"] == "start" and entry["step"]]
    assert last - 8 <= start <= last
    assert_same(losses(tmp_path), single, range(1, last + 6))


def test_a_batch_that_the_processes_do_not_divide_is_rejected_before_anything_starts(text_file, cache, tmp_path):
    status, out, err = Launched(2, tmp_path / "run", text_file, cache, "train.steps=5", "train.batch_size=7").end()
    assert status == 1
    assert re.findall(r"jaxlm: (.*)", err) == [
        "train.batch_size=7 is not divisible by the 2 devices that split the batch"
    ]
    assert "step" not in out
    assert sorted(os.listdir(tmp_path / "run")) == [".jaxlm-run", "lock"]
