import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxlm.runtime import progress
from jaxlm.runtime.progress import Progress, StepProgress, duration
from tests.conftest import environment


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_training_prints_a_line_every_ten_seconds_and_the_first_and_last_step(clock, capsys):
    shown = StepProgress(0, 100)
    for step in range(1, 26):
        shown.train(step, ["loss 2.000", "12,346 tokens/s"])
        clock[0] += 1
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/100", "step 11/100", "step 21/100", "step 25/100"]
    assert lines[1] == "step 11/100  loss 2.000  12,346 tokens/s  1:29 left"


def test_the_last_line_is_printed_once(capsys):
    shown = StepProgress(0, 1)
    shown.train(1, ["loss 2.000"])
    shown.close()
    shown.close()
    assert capsys.readouterr().out == "step 1/1  loss 2.000\n"


def test_a_text_follows_a_line_about_the_latest_step(clock, capsys):
    shown = StepProgress(0, 10)
    for step in (1, 2):
        shown.train(step, [])
    shown.evaluation(2, "dev", ["dev accuracy 50.0%", "n 4"])
    shown.print("saved")
    assert capsys.readouterr().out.splitlines() == [
        "step 1/10", "step 2/10", "step 2  dev accuracy 50.0%  n 4", "saved",
    ]  # fmt: skip


def test_a_time_budget_estimates_the_time_left_from_its_fraction(clock, capsys):
    shown = StepProgress(0, None)
    for step, fraction in ((5, 0.1), (9, 0.3)):
        shown.train(step, ["loss 2.000"], fraction)
        clock[0] += 20
    assert capsys.readouterr().out.splitlines() == ["step 5  loss 2.000", "step 9  loss 2.000  1:10 left"]


@pytest.mark.parametrize("interval", [0.001, 1.0])
def test_the_time_left_follows_a_change_of_pace(clock, interval):
    pace = progress._Pace()
    done = 0.0
    for seconds, per_second in ((500, 0.0001), (100, 0.001)):
        for _ in range(int(seconds / interval)):
            clock[0] += interval
            done += per_second * interval
            pace.add(done)
    assert pace.seconds_left() == pytest.approx((1 - done) / 0.001, rel=0.01)


def test_preparation_prints_each_phase_and_a_line_every_five_seconds(clock, capsys):
    with Progress() as shown:
        shown.begin("read")
        for _ in range(6):
            clock[0] += 2
            shown.advance(1_000, 10**6)
        assert shown.bytes == 6 * 10**6
        shown.begin("tokenize", 6 * 10**6)
        for _ in range(3):
            clock[0] += 4
            shown.advance(1_000, 10**6)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "read",
        "read  3,000 documents  3 MB",
        "read  6,000 documents  6 MB",
        "tokenize",
        "tokenize  2,000 documents  2 of 6 MB  0:16 left",
    ]


STEPS = """
from jaxlm.runtime.progress import StepProgress
shown = StepProgress(0, 2000)
shown.print("before [the] bar")
for step in (500, 1000, 1500, 2000):
    shown.train(step, ["loss 2.500", "58,321 tokens/s", "MFU 34.1%"])
    shown.evaluation(step, "held-out", ["held-out loss 2.750", "accuracy 50.0%", "n 12"])
    shown.print("above [the] bar, /" + 150 * "x")
shown.close()
print("the end")
"""

DOCUMENTS = """
import time
from jaxlm.runtime.progress import Progress
with Progress() as shown:
    shown.begin("read")
    shown.advance(1234, 2 * 10**6)
    time.sleep(1)
    shown.begin("tokenize", 4 * 10**6)
    shown.advance(617, 10**6)
    time.sleep(1)
print("the end")
"""


def on_a_terminal(program, columns):
    """Returns what a program writes to a terminal, without the codes that move the cursor or set colours."""
    import pty

    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24", "NO_COLOR": "1"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            if not part:
                break
            written += part
    os.close(leader)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_of_training_fits_the_terminal(columns):
    text = on_a_terminal(STEPS, columns)
    last = text[text.rindex("step 2,000/2,000") :].splitlines()
    assert len(last[0]) <= columns
    assert "100%" in last[0]
    assert last[1].rstrip() == "loss 2.500   58,321 tokens/s   MFU 34.1%"
    assert last[2].rstrip() == "held-out loss 2.750   accuracy 50.0%   n 12"
    assert "before [the] bar" in text
    assert text.count(f"above [the] bar, /{150 * 'x'}") == 4  # a path can be copied whole
    assert "the end" in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_bar_of_preparation_shows_what_is_done_and_how_long_it_takes():
    text = on_a_terminal(DOCUMENTS, 80)
    assert re.search(r"read .* 0:0\d elapsed\s+1,234 documents   2 MB\b", text)
    assert re.search(r"tokenize .* 25%\s+617 documents   1 of 4 MB\b", text)
    assert text.rstrip().endswith("the end")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (75, "1:15"), (59.6, "1:00"), (3700, "1:01:40"), (200_000, "2 d 7 h")]
)
def test_durations_are_written_as_on_a_clock(seconds, text):
    assert duration(seconds) == text


UNREAD = """
import sys
from jaxlm.runtime.progress import StepProgress, show
shown = StepProgress(0, 100)
sys.stdin.readline()  # until nobody reads the output
show("token store: reused")
for step in range(1, 5):
    shown.train(step, ["loss 2.000"])
    shown.print("a note")
shown.close()
print("lost")
print("still here", file=sys.stderr)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_training_goes_on_when_nobody_reads_its_output_any_more(unbuffered):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", UNREAD], env=environment() | {"PYTHONUNBUFFERED": unbuffered}, **pipes
    )
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read().decode() == "still here\n"
    assert process.wait() == 0


def test_another_error_of_the_output_is_raised(monkeypatch):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    shown = StepProgress(0, 100)
    with pytest.raises(OSError, match="No space left"):
        shown.print("a note")
