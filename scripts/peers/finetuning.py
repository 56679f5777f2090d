"""Shared by compare_finetune and compare_scores: jaxlm's command, and what is read from its work directory."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison import ROOT, last_line

from jaxlm.errors import UserError

OURS = "jaxlm"
UNCOUNTED = 20  # steps before jaxlm's time begins
BATCH, LENGTH = 32, 128
# As the peer's: AdamW with a linear schedule, all of the training set is trained on, and nothing is selected.
SETTINGS = {
    "train.batch_size": BATCH, "task.name": "none", "data.sequence_length": LENGTH, "model.dropout": 0.1,
    "model.attention_dropout": 0.1, "optimizer.weight_decay": 0.01, "optimizer.beta2": 0.999,
    "optimizer.clip_norm": 1.0, "schedule.name": "linear", "schedule.warmup": 0.1, "evaluation.select": "none",
    "evaluation.per_epoch": 0, "evaluation.every": 0, "checkpoint.every": 100_000, "logging.every": UNCOUNTED,
    "logging.tensorboard": "false", "logging.curve": "false",
}  # fmt: skip


def own_command(
    objective: str, train: Path, sets: Mapping[str, Path], workdir: Path, settings: Mapping[str, Any],
    config: str | Path = "finetune",
) -> list[str]:  # fmt: skip
    """Returns the command that fine-tunes with jaxlm and evaluates `sets`; `settings` go beside those of the peer."""
    evaluation = ",".join(f"{name}={path}" for name, path in sets.items())
    data = {"train.objective": objective, "task.train": train, "task.evaluation": evaluation}
    values = [f"--config.{name}={value}" for name, value in (SETTINGS | data | dict(settings)).items()]
    return [sys.executable, "-m", "jaxlm.cli", "train", f"--config={config}", f"--workdir={workdir}", *values]


def run(command: list[str], ours: bool = False) -> str:
    """Returns what a command prints. Raises UserError with its last line on standard error if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} if ours else dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise UserError(last_line(done.stderr))
    return done.stdout


def own_rate(events: list[dict[str, Any]]) -> float:
    """Returns examples per second from the line of metrics.jsonl after the uncounted steps to that of the last one."""
    lines = [event for event in events if event["kind"] == "train" and event["step"] >= UNCOUNTED]
    if len(lines) < 2:
        raise UserError(f"a run of {BATCH} x {UNCOUNTED} examples is not counted; raise --examples or --epochs")
    first, last = lines[0], lines[-1]
    return BATCH * (last["step"] - first["step"]) / (last["time"] - first["time"])


def results_of(workdir: Path) -> dict[str, dict[str, Any]]:
    """Returns the metrics of each evaluation set of a run."""
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))["evaluation"]
