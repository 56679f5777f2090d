import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.errors import UserError
from jaxlm.runtime import run_log
from jaxlm.runtime.run_log import RunLog, draw_curve, read_metrics

QUIET = {"tensorboard": False, "curve": False}


def strict_lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def run(workdir, first, last, every=1, evaluate_every=3, mark=0):
    """A stretch of a run; `mark` tells in each event which stretch wrote it."""
    log = RunLog(workdir, last, first_step=first, **QUIET)
    for step in range(first + 1, last + 1):
        if step % every == 0:
            log.train(step, {"loss": 1.0 / step, "mark": mark})
        if step % evaluate_every == 0:
            log.evaluation(step, "a", {"loss": 2.0 / step, "mark": mark})
            log.evaluation(step, "b", {"loss": 3.0 / step, "mark": mark})
    return log


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(1, 3), st.integers(0, 40)), max_size=4))
def test_a_killed_and_resumed_run_reads_like_one_that_was_never_stopped(stretches):
    with TemporaryDirectory() as folder:
        workdir, done = Path(folder), 0
        path = workdir / "metrics.jsonl"
        for mark, (steps, lost, every, cut) in enumerate(stretches):
            run(workdir, done, done + steps, every, mark=mark)  # killed: never closed
            done = max(done, done + steps - lost)  # of the last checkpoint
            content = path.read_bytes()
            path.write_bytes(content[: len(content) - min(cut, len(content) - content[:-1].rfind(b"\n") - 1)])
        run(workdir, 0, 20, mark="last").close()
        last = [event for event in read_metrics(workdir) if event["kind"] in ("train", "evaluation")]
        assert [(e["kind"], e["step"], e.get("name")) for e in last] == [
            key
            for step in range(1, 21)
            for key in [("train", step, None)]
            + ([("evaluation", step, "a"), ("evaluation", step, "b")] if step % 3 == 0 else [])
        ]
        assert {event["mark"] for event in last} == {"last"}
        strict_lines(workdir)


def test_a_resumed_run_keeps_what_came_before_and_drops_what_went_beyond(tmp_path):
    run(tmp_path, 0, 8, every=1, mark=0).close()
    run(tmp_path, 6, 12, every=2, mark=1).close()
    train = [(e["step"], e["mark"]) for e in read_metrics(tmp_path) if e["kind"] == "train"]
    assert train == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (8, 1), (10, 1), (12, 1)]


def test_what_is_logged_twice_reads_as_logged_last(tmp_path):
    with RunLog(tmp_path, 9, **QUIET) as log:
        for loss in (3.0, 2.0):
            log.evaluation(1, "a", {"loss": loss})
            log.evaluation(1, "b", {"loss": loss})
            log.event("remark", text=str(loss))
    read = [(e["kind"], e.get("name"), e.get("loss")) for e in read_metrics(tmp_path)]
    twice = [("remark", None, None), ("evaluation", "a", 2.0), ("evaluation", "b", 2.0), ("remark", None, None)]
    assert read == twice


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_a_file_cut_anywhere_reads_and_goes_on(at):
    with TemporaryDirectory() as folder:
        workdir = Path(folder)
        run(workdir, 0, 6).close()
        whole = read_metrics(workdir)
        path = workdir / "metrics.jsonl"
        path.write_bytes(path.read_bytes()[: at % (path.stat().st_size + 1)])
        left = read_metrics(workdir)
        assert left == whole[: len(left)]
        RunLog(workdir, 6, first_step=6, **QUIET).event("end", step=6)
        strict_lines(workdir)
        assert [e for e in read_metrics(workdir) if e["kind"] not in ("resume", "end")] == left


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    run(tmp_path, 0, 3).close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    for broken in (b'{"kind": "tr', b"[1, 2]", b'{"step": 3}', b'{"kind": "train"}', b"\xff\xfe"):
        path.write_bytes(b"\n".join([lines[0], broken, *lines[1:]]))
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2,"):
            read_metrics(tmp_path)


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="work directory"):
        read_metrics(tmp_path / "mistyped")


def test_events_are_valid_json_whatever_the_numbers(tmp_path):
    with RunLog(tmp_path, 9, **QUIET) as log:
        log.train(np.int64(1), {"loss": float("nan"), "norm": float("inf"), "rate": np.float32(0.5)})
        log.event("start", machine={"path": Path("a"), "list": (1, float("-inf"))}, array=np.array([1.0, np.nan]))
        log.event("text", text='a "b"\n\u2028 \ud800')
    train, start, text = strict_lines(tmp_path)
    assert (train["step"], train["loss"], train["norm"], train["rate"]) == (1, None, None, 0.5)
    assert start["machine"] == {"path": "a", "list": [1, None]}
    assert start["array"] == [1.0, None]
    assert text["text"] == 'a "b"\n\u2028 \ud800'


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    log = RunLog(tmp_path, 9, **QUIET)
    log.event("start", step=0)
    log.note("begins")
    assert [event["kind"] for event in read_metrics(tmp_path)] == ["start"]
    assert (tmp_path / "log.txt").read_text().endswith("  begins\n")


def test_only_the_primary_process_writes_or_shows(tmp_path, capfd):
    with RunLog(tmp_path / "run", 9, tensorboard=True, curve=True, primary=False) as log:
        log.note("hello")
        log.event("start", step=0)
        log.train(1, {"loss": 1.0})
        log.evaluation(1, "a", {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_sentence(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with RunLog(tmp_path, 9, **QUIET) as log, pytest.raises(UserError, match="No space left"):
        log.note("hello")


def clock(monkeypatch):
    """A clock that the test winds by hand."""
    now = [100.0]
    monkeypatch.setattr(
        run_log, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time, strftime=time.strftime)
    )
    return now


def test_plain_lines_come_every_ten_seconds_with_the_first_and_the_last(tmp_path, monkeypatch, capsys):
    now = clock(monkeypatch)
    with RunLog(tmp_path, 100, **QUIET) as log:
        for step in range(1, 26):
            log.train(step, {"loss": 2.0, "tokens_per_second": 12345.6, "mfu": 0.416})
            now[0] += 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/100", "step 11/100", "step 21/100", "step 25/100"]
    assert lines[1] == "step 11/100  loss 2.000  12,346 tokens/s  MFU 41.6%  1:29 left"


def test_the_last_line_is_not_shown_twice(tmp_path, capsys):
    with RunLog(tmp_path, 1, **QUIET) as log:
        log.train(1, {"loss": 2.0})
    log.close()
    assert capsys.readouterr().out == "step 1/1  loss 2.000\n"


def test_a_run_by_the_clock_tells_its_time_left_from_its_progress(tmp_path, monkeypatch, capsys):
    now = clock(monkeypatch)
    with RunLog(tmp_path, None, **QUIET) as log:
        for step, progress in ((5, 0.1), (9, 0.3)):
            log.train(step, {"loss": 2.0, "progress": progress})
            now[0] += 20
    assert capsys.readouterr().out.splitlines()[1] == "step 9  loss 2.000  1:10 left"


def test_held_out_results_name_the_set(tmp_path, capsys):
    with RunLog(tmp_path, 5_000, **QUIET) as log:
        log.evaluation(1_000, "medicine", {"loss": 3.21, "accuracy": 0.415})
        log.evaluation(1_000, "held_out", {"loss": float("nan")})
    assert capsys.readouterr().out.splitlines() == [
        "step 1,000  held-out medicine loss 3.210  accuracy 41.5%",
        "step 1,000  held-out loss nan",
    ]


def test_a_note_that_the_terminal_cannot_spell_is_shown_all_the_same(tmp_path):
    program = (
        "from jaxlm.runtime.run_log import RunLog; import sys\n"
        "with RunLog(sys.argv[1], 9, tensorboard=False, curve=False) as log: log.note('Zoë \\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "Zo\\xeb \\udcff\n"


TERMINAL_RUN = """
import sys
from jaxlm.runtime.run_log import RunLog
with RunLog(sys.argv[1], 2000, tensorboard=False, curve=False) as log:
    log.note("before [the] bar")
    for step in (500, 1000, 1500, 2000):
        log.train(step, {"loss": 2.5, "tokens_per_second": 58321.0, "mfu": 0.341})
        log.evaluation(step, "held_out", {"loss": 2.75, "accuracy": 0.5})
        log.note("above [the] bar, /" + 150 * "x")
print("the end")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_gets_a_bar_that_fits_it(tmp_path, columns):
    import pty

    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24", "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL_RUN, str(tmp_path)], stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
    os.close(leader)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = text[text.rindex("step 2,000/2,000") :].splitlines()
    assert len(last[0]) <= columns
    assert "100%" in last[0]
    assert last[1].rstrip() == "loss 2.500   58,321 tokens/s   MFU 34.1%"
    assert last[2].rstrip() == "held-out loss 2.750   accuracy 50.0%"
    assert "before [the] bar" in text
    assert text.count(f"above [the] bar, /{150 * 'x'}") == 4  # a path can be copied whole
    assert "the end" in text


def test_tensorboard_gets_each_number_and_forgets_what_was_superseded(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    (tmp_path / "metrics.jsonl").write_text('{"kind": "start", "step": 0}\n')
    with RunLog(tmp_path, 9, tensorboard=True, curve=False, first_step=5) as log:
        log.train(6, {"loss": 2.5, "rate": float("nan")})
        log.evaluation(6, "wiki", {"loss": 3.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    scalars = {(value.tag, e.step): value.simple_value for e in events for value in e.summary.value}
    assert scalars == {("train/loss", 6): 2.5, ("held-out/wiki/loss", 6): 3.5}
    assert 6 in [event.step for event in events if event.HasField("session_log")]


def test_tensorboard_is_fast_enough_for_every_step(tmp_path):
    with RunLog(tmp_path, 1000, tensorboard=True, curve=False) as log:
        start = time.perf_counter()
        for step in range(300):
            log.train(step, {"loss": 2.5, "rate": 0.1, "norm": 1.0})
        assert time.perf_counter() - start < 3  # 10 ms a step on a busy machine; 0.3 ms on a quiet one


@pytest.mark.parametrize("name", ["plain", "cost_$^$", "医学"])
def test_the_curve_is_drawn_at_the_end_whatever_the_directory_is_called(tmp_path, name):
    with RunLog(tmp_path / name, 200, tensorboard=False, curve=True) as log:
        for step in range(1, 201):
            log.train(step, {"loss": float("nan") if step == 50 else 9 / step})
            if step % 50 == 0:
                log.evaluation(step, "a", {"loss": 10 / step, "unigram_loss": 7.0})
                log.evaluation(step, "b", {"loss": 11 / step, "unigram_loss": 7.5})
    assert (tmp_path / name / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / name).glob("*.tmp"))


def test_every_part_of_the_curve_shows(tmp_path):
    events = [{"kind": "train", "step": step, "loss": 9 / step} for step in range(1, 100)]
    pictures = [events]
    pictures.append([*pictures[-1], {"kind": "evaluation", "step": 50, "name": "a", "loss": 5.0}])
    pictures.append([*pictures[-1], {"kind": "evaluation", "step": 99, "name": "b", "loss": 5.0}])
    pictures.append([*pictures[-1], {"kind": "evaluation", "step": 99, "name": "b", "loss": 5.0, "unigram_loss": 4.9}])
    drawn = set()
    for picture in pictures:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in picture))
        drawn.add(draw_curve(tmp_path).read_bytes())
    assert len(drawn) == len(pictures)


def test_a_run_without_a_loss_has_no_curve(tmp_path, capsys):
    with RunLog(tmp_path, 9, tensorboard=False, curve=True) as log:
        log.event("start", step=0)
    with pytest.raises(UserError, match="no loss yet"):
        draw_curve(tmp_path)
    with RunLog(tmp_path, 9, tensorboard=False, curve=True) as log:
        log.train(1, {"loss": float("nan")})
    assert "curve.png was not drawn" in capsys.readouterr().out
    assert not (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("length", [1, 2, 39, 40, 400])
def test_smoothing_keeps_a_straight_line_and_the_first_value(length):
    line = tuple(5 - 0.01 * step for step in range(length))
    smoothed = run_log._smooth(line)
    assert len(smoothed) == length
    edge = length // 40
    assert smoothed[0] == pytest.approx(line[0])
    assert smoothed[: length - edge] == pytest.approx(line[: length - edge])
    assert smoothed == pytest.approx(line, abs=0.01 * (edge + 1))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (75, "1:15"), (59.6, "1:00"), (3700, "1:01:40"), (200_000, "2 d 7 h")]
)
def test_durations_are_written_as_on_a_clock(seconds, text):
    assert run_log._duration(seconds) == text


def test_the_module_loads_nothing_heavy():
    code = "import sys, jaxlm.runtime.run_log; print({'jax', 'matplotlib', 'rich', 'tensorboardX'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_disk_that_is_full_ends_the_events_of_tensorboard_and_not_the_run(tmp_path):
    code = """
import resource, sys
from jaxlm.runtime.run_log import RunLog
with RunLog(sys.argv[1], 2000, tensorboard=True, curve=False) as log:
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for step in range(2000):
        log._write_scalars("train", step, {"loss": 1.0})
    log.train(2000, {"loss": 1.0})
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("TensorBoard gets no more events: File too large") == 1
    assert read_metrics(tmp_path)[-1]["step"] == 2000
