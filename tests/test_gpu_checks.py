"""scripts/gpu_checks: all parts with toy shapes on a CPU, and what is reported when parts fail or time runs out."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace

import pytest

from jaxlm.performance.kernel_errors import KernelError
from tests.conftest import ROOT
from tests.scripts import load_script
from tests.test_imports import TENSORFLOW, block

ABSENT = TENSORFLOW | {"tensorboardX", "zstandard", "jieba", "apache_beam"}  # from a machine with only JAX and torch


@pytest.fixture(scope="module")
def script():
    return load_script("gpu_checks")


@pytest.fixture
def checks(script, tmp_path):
    args = Namespace(output=tmp_path, minutes=1.0, tiny=True, rounds=1, steps=1, warmup=0, python=sys.executable)
    return script.Checks(args, tmp_path)


@pytest.mark.slow
def test_all_parts_run_on_a_cpu_without_tensorflow(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(block(*ABSENT))
    command = [sys.executable, str(ROOT / "scripts" / "gpu_checks"), "--tiny", f"--output={tmp_path}", "--steps=2"]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu_checks.json").read_text())
    parts = {one["part"]: one for one in result["parts"]}
    assert {one["status"] for one in result["parts"]} == {"ok"}
    assert {one["kernel"] for one in parts["kernels"]["errors"]} == {"flash attention", "fused norm"}
    assert all(0 < one["gradients"] < 0.02 for one in parts["kernels"]["errors"])
    assert parts["profile"]["bench"]["profile"]["kinds"]["products"]["product_flops"] > 0
    assert [set(one) for one in parts["speed"]["rounds"]] in ([{"jaxlm", "peer"}] * 2, [{"jaxlm"}] * 2)
    (memory,) = parts["memory"]["steps"]
    assert 0.5 < sum(memory["formula_bytes"].values()) / memory["xla_bytes"] < 2
    assert result["machine"]["platform"] == "cpu"
    report = (tmp_path / "gpu_checks.md").read_text()
    assert done.stdout == report
    assert all(f"\n### {part}" in f"\n{report}" for part in ("Speed", "Kernels", "Profile of BERT-base", "Memory"))
    assert "`scripts/gpu_checks --tiny --steps=2`" in report


@pytest.mark.slow
def test_without_a_gpu_it_fails_with_one_sentence(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "gpu_checks"), f"--output={tmp_path}"]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: gpu_checks: JAX finds no GPU, only cpu; --tiny runs the same code on a CPU" in done.stdout
    (part,) = json.loads((tmp_path / "gpu_checks.json").read_text())["parts"]
    assert (part["part"], part["status"]) == ("kernels", "failed")


@pytest.mark.parametrize(("argument", "words"), [
    ("--rounds=0", "--rounds=0: must be at least 1"),
    ("--minutes=0", "--minutes=0: must be above 0"),
    ("--shapes=bert_huge:2x32", "--shapes: bert_huge:2x32: expected NAME"),
])  # fmt: skip
def test_wrong_arguments_are_one_sentence(script, monkeypatch, capsys, argument, words):
    monkeypatch.setattr(sys, "argv", ["gpu_checks", argument])
    assert script.main() == 1
    assert capsys.readouterr().err.startswith(f"gpu_checks: {words}")


def test_a_failed_part_is_reported_and_the_others_go_on(script, checks, tmp_path):
    def fail(result, deadline):
        raise script.Failed("out of memory")

    def crash(result, deadline):
        raise KeyError("step_seconds")

    def succeed(result, deadline):
        result["errors"] = [KernelError("k", "c", 0.0, 0.0, 0.0, 0.0)._asdict() | {"passed": True}]

    for part, action in (("speed", fail), ("profile", crash), ("kernels", succeed)):
        checks.run(part, f"the {part} part", action)
    written = json.loads((tmp_path / "gpu_checks.json").read_text())["parts"]
    assert [one["status"] for one in written] == ["failed", "failed", "ok"]
    report = (tmp_path / "gpu_checks.md").read_text()
    assert "- the speed part: failed: out of memory." in report
    assert "- the profile part: failed: KeyError: 'step_seconds'." in report
    assert "| k | c | 0.0e+00 |" in report


@pytest.mark.slow
def test_parts_stop_at_the_end_of_the_time(script, checks, monkeypatch):
    def hang(result, deadline):
        with script.Process([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ)) as process:
            process.answer(deadline)

    begin = time.monotonic()
    checks.run("speed", "a part that needs more", hang, need=3600.0)
    monkeypatch.setattr(script, "LIMITS", script.LIMITS | {"profile": 0.3})
    checks.run("profile", "a part that hangs", hang)
    checks.end = time.monotonic() + script.RESERVE + 1.3
    checks.run("speed", "a part that is stopped", hang)
    assert time.monotonic() - begin < 10
    assert [one["status"] for one in checks.parts] == ["skipped", "failed", "skipped"]
    sentences = [one["sentence"] for one in checks.parts]
    assert sentences[0].startswith("it needs about 3600 seconds, and")
    assert sentences[1:] == ["it did not finish within 0 seconds", "it did not finish in the 1 seconds that were left"]


def test_processes_answer_and_report_their_last_line(script):
    program = (
        "import sys\nprint('a library says hello')\nprint('{\"ready\": true}', flush=True)\n"
        "for line in sys.stdin: print('{\"line\": \"' + line.strip() + '\"}', flush=True)"
    )
    deadline = time.monotonic() + 30
    with script.Process([sys.executable, "-c", program], dict(os.environ)) as process:
        assert process.answer(deadline) == {"ready": True}
        assert process.ask(deadline) == {"line": "go"}
        with pytest.raises(TimeoutError):
            process.answer(time.monotonic())
    with script.Process([sys.executable, "-c", "raise ValueError('no luck')"], dict(os.environ)) as process:
        with pytest.raises(script.Failed, match=r"^ValueError: no luck$"):
            process.answer(deadline)
        with pytest.raises(script.Failed, match=r"^ValueError: no luck$"):
            process.ask(deadline)
    with script.Process([sys.executable, "-c", "pass"], dict(os.environ)) as process:
        assert process.answer(deadline) is None


def test_the_rounds_before_a_peer_fails_are_kept(script, checks):
    class Ours:
        def ask(self, deadline):
            return {"step_seconds": 1.0}

    class Peer:
        left = 1

        def ask(self, deadline):
            self.left -= 1
            if self.left < 0:
                raise script.Failed("out of memory")
            return {"step_seconds": 2.0}

    checks.args.rounds, result = 3, {"rounds": []}
    with pytest.raises(script.Failed):
        checks.rounds(result, 0.0, Ours(), Peer())
    assert [list(one) for one in result["rounds"]] == [["jaxlm", "peer"], ["jaxlm"]]


def test_goals_stand_beside_the_results(script):
    def bench(seconds):
        return {"step_seconds": seconds, "model_flops": 4e14, "mfu": 0.4 / seconds, "peak_source": "the datasheet",
                "peak_flops_per_second": 1e15}  # fmt: skip

    rounds = [
        {"jaxlm": bench(1.0), "peer": {"step_seconds": 1.5}},
        {"jaxlm": bench(1.0), "peer": {"step_seconds": 1.3}},
    ]
    parts = [
        {"part": "speed", "shape": f"{name}:4x128:2", "rounds": rounds, "peer": "Transformers, bf16"}
        for name in ("bert_base", "bert_large", "modernbert_base", "4x256")
    ]
    rows = [line.split(" | ") for line in script.speed_table(parts).splitlines() if "batch" in line]
    assert [row[4] for row in rows] == ["40.0% (45%)", "40.0% (55%)", "40.0% (45%)", "40.0%"]
    assert rows[0][1:4] + rows[0][5:] == ["512", "1,000.0", "400", "368", "1.40 (1.30 to 1.50) |"]


def test_shapes_are_the_published_models_packed(script):
    shapes = [script.read_shape(text) for text in script.SHAPES]
    assert len({(shape.name, shape.length) for shape in shapes}) == 9
    assert {shape.length for shape in shapes} == {128, 512, 1024}
    assert all(shape.documents > 1 for shape in shapes)
    large = script.read_shape("bert_large:32x1024:8")
    assert (large.encoder.layers, large.encoder.width, large.encoder.max_positions) == (24, 1024, 1024)
    assert [script.peer_name(script.read_shape(name), tiny=False) for name in ("bert_base", "modernbert_base")] == [
        "Transformers, bf16, compiled, head at masked tokens", "Transformers, bf16, compiled",
    ]  # fmt: skip
