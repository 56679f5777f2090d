"""Sweeps and runs without training, for tests: a run that writes what `jaxlm train` would log."""

import json
from pathlib import Path

from jaxlm.study.execution import Processes

SWEEP = """\
from jaxlm.study import Arm, Range, Search, Sweep


def get_sweep():
    return Sweep(
        question="Does a higher rate lower the loss?", base={base!r}, settings=("train.steps=20",), seeds={seeds},
        arms=({arms}), evaluation={evaluation!r}, metric={metric!r}, unit="nats", smallest_effect=0.02, {more}
    )
"""
ARMS = 'Arm("slow"), Arm("fast", ("optimizer.learning_rate=0.01",)), Arm("30 %", ("masking.rate=0.3",)),'


def write_sweep(folder: Path, arms=ARMS, base="mini", seeds=2, evaluation="held_out", metric="loss", more="") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = SWEEP.format(base=base, arms=arms, seeds=seeds, evaluation=evaluation, metric=metric, more=more)
    (folder / "sweep.py").write_text(text)
    return folder


def write_run(workdir: Path, config: dict, losses, evaluation="held_out", time=1000.0, done=True, **start) -> None:
    """Writes config.json and metrics.jsonl of a run with these losses, after 10, 20, ... updates."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config))
    machine = {"processor": "a processor", "cores": 2, "parameters": 1000, "versions": {"jaxlm": "0.1.0"},
               "tokenizer": "t", "evaluation": {evaluation: "15% of tokens masked"}}  # fmt: skip
    events = [{"kind": "start", "step": 0, "elapsed_seconds": 0.5, "time": time} | machine | start]
    for index, loss in enumerate(losses, 1):
        now, step = time + 10.0 * index, 10 * index
        events.append({"kind": "train", "step": step, "loss": loss + 0.1, "progress": index / len(losses),
                       "tokens_per_second_without_padding": 100.0 * index, "time": now})  # fmt: skip
        events.append({"kind": "evaluation", "step": step, "name": evaluation, "loss": loss, "accuracy": 0.5,
                       "n": 100, "time": now + 1})  # fmt: skip
    if done:
        events.append({"kind": "end", "step": 10 * len(losses), "params_sha256": "x", "time": now + 2})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def loss_of(config: dict) -> float:
    """Returns the made-up result of a run: lower with a higher rate, and different for each seed."""
    own = 4 + 0.1 * config["train"]["seed"] - 10 * config["optimizer"]["learning_rate"]
    return own + 0.001 * ((config["train"]["seed"] * 7) % 3) + (config["masking"]["rate"] - 0.15)


def replace_training(monkeypatch, fails=lambda config: None) -> list[str]:
    """Lets jobs write a made-up run in place of a process; returns the names of those that ran, as they do.

    `fails` returns the sentence with which a config fails, or None.
    """
    ran: list[str] = []

    def run(self, slot, job):
        config = json.loads(job.config.read_text())
        ran.append(job.name)
        if sentence := fails(config):
            job.workdir.mkdir(parents=True, exist_ok=True)
            return sentence
        loss = loss_of(config)
        write_run(job.workdir, config, [loss + 1, loss])
        return None

    monkeypatch.setattr(Processes, "_run_in", run)
    return ran
