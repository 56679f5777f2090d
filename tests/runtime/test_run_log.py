import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.errors import UserError
from jaxlm.runtime.run_log import RunLog, read_metrics

QUIET = {"tensorboard": False, "curve": False}


def strict_lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def run(workdir, first, last, every=1, evaluate_every=3, mark=0):
    """Logs a part of a run; `mark`, written in each event, identifies the part."""
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
def test_a_killed_and_resumed_run_reads_like_an_uninterrupted_one(parts):
    with TemporaryDirectory() as folder:
        workdir, done = Path(folder), 0
        path = workdir / "metrics.jsonl"
        for mark, (steps, lost, every, cut) in enumerate(parts):
            run(workdir, done, done + steps, every, mark=mark)  # never closed, as if killed
            done = max(done, done + steps - lost)  # the step of the last checkpoint
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


def test_a_resumed_run_keeps_earlier_events_and_drops_later_ones(tmp_path):
    run(tmp_path, 0, 8, every=1, mark=0).close()
    run(tmp_path, 6, 12, every=2, mark=1).close()
    train = [(e["step"], e["mark"]) for e in read_metrics(tmp_path) if e["kind"] == "train"]
    assert train == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (8, 1), (10, 1), (12, 1)]


def test_the_last_of_two_events_for_a_step_counts(tmp_path):
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
def test_a_file_cut_anywhere_can_be_read_and_appended_to(at):
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
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a JSON object"):
            read_metrics(tmp_path)


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="work directory"):
        read_metrics(tmp_path / "mistyped")


def test_events_are_valid_json_for_any_value(tmp_path):
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


def test_training_shows_known_metrics_in_a_fixed_order(tmp_path, capsys):
    with RunLog(tmp_path, 100, **QUIET) as log:
        speed = {"tokens_per_second": 20000.0, "tokens_per_second_without_padding": np.float32(12345.6)}
        log.train(1, {"mfu": 0.416, "gradient_norm": 1.5, **speed, "loss": 2.0})
    assert capsys.readouterr().out == "step 1/100  loss 2.000  12,346 tokens/s  MFU 41.6%\n"


def test_a_time_budget_shows_the_time_left(tmp_path, capsys):
    with RunLog(tmp_path, None, **QUIET) as log:
        for step, progress in ((5, 0.1), (9, 0.3)):
            log.train(step, {"accuracy": 0.5, "progress": progress})
            time.sleep(0.1)
    assert re.fullmatch(r"step 9  accuracy 50.0%  0:0\d left", capsys.readouterr().out.splitlines()[1])


def test_an_evaluation_shows_its_set_and_every_scalar(tmp_path, capsys):
    with RunLog(tmp_path, 5_000, **QUIET) as log:
        log.evaluation(1_000, "medicine", {"loss": np.float32(3.21), "nats_per_byte": 0.912345, "predictions": 65_536})
        log.evaluation(1_000, "held_out", {"loss": float("nan"), "accuracy_top5": 0.6, "confusion": [[3, 1], [0, 4]]})
        log.evaluation(1_000, "dev", {"accuracy": 0.415, "loss": None, "n": 408})
        log.evaluation(1_000, "empty", {})
    assert capsys.readouterr().out.splitlines() == [
        "step 1,000  held-out medicine loss 3.210  0.912 nats per byte  predictions 65,536",
        "step 1,000  held-out loss nan  top-5 accuracy 60.0%",
        "step 1,000  held-out dev accuracy 41.5%  n = 408",
        "step 1,000  held-out empty",
    ]


def test_a_note_with_characters_that_the_terminal_lacks_is_shown(tmp_path):
    program = (
        "from jaxlm.runtime.run_log import RunLog; import sys\n"
        "with RunLog(sys.argv[1], 9, tensorboard=False, curve=False) as log: log.note('Zoë \\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "Zo\\xeb \\udcff\n"


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


def test_tensorboard_gets_each_number_and_hides_superseded_ones(tmp_path):
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


def test_the_curve_is_drawn_at_the_end(tmp_path):
    with RunLog(tmp_path, 200, tensorboard=False, curve=True) as log:
        for step in range(1, 201):
            log.train(step, {"loss": float("nan") if step == 50 else 9 / step})
            if step % 50 == 0:
                log.evaluation(step, "a", {"loss": 10 / step, "unigram_loss": 7.0})
                log.evaluation(step, "b", {"accuracy": step / 400, "n": 408})
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_loss_has_no_curve(tmp_path, capsys):
    with RunLog(tmp_path, 9, tensorboard=False, curve=True) as log:
        log.event("start", step=0)
    assert capsys.readouterr().out == ""
    with RunLog(tmp_path, 9, tensorboard=False, curve=True) as log:
        log.train(1, {"loss": float("nan")})
    assert "curve.png was not drawn: the run has logged no loss" in capsys.readouterr().out
    assert not (tmp_path / "curve.png").exists()


def test_importing_the_module_loads_no_heavy_library():
    code = "import sys, jaxlm.runtime.run_log; print({'jax', 'matplotlib', 'rich', 'tensorboardX'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_full_disk_ends_tensorboard_s_events_and_not_the_run(tmp_path):
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


def test_a_pipe_in_place_of_a_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="it is a pipe, a socket or a device; give the work directory"):
        read_metrics(tmp_path)
