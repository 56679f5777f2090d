"""Trains with bfloat16 products and in float32, 2,000 steps with three seeds each, and compares the held-out losses.

    .venv/bin/python experiments/bfloat16/run.py --workdir=runs/bfloat16

A seed determines the initial weights, the order of rows and the masks, so the two runs of a seed differ only in the
products. Runs that are already complete are reused. Writes results.csv and curves.png next to this file.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
DTYPES, SEEDS, STEPS = ("bfloat16", "float32"), (0, 1, 2), 2000
SETTINGS = {
    "data.max_megabytes": 8.0, "model.layers": 2, "model.tied_output": False, "masking.rate": 0.15,
    "masking.final_rate": None, "train.minutes": None, "train.steps": STEPS, "train.batch_size": 8,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "evaluation.every": 100, "evaluation.rows": 256,
    "checkpoint.every": 500,
}  # fmt: skip
STUDENT_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # two-sided 95%, by degrees of freedom


def train(workdir: Path, dtype: str, seed: int) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl; trains first if the run is not complete."""
    folder = workdir / f"{dtype}_{seed}"
    lines = _read(folder)
    if not any(line["kind"] == "end" for line in lines):
        settings = SETTINGS | {"train.compute_dtype": dtype, "train.seed": seed}
        command = [sys.executable, "-m", "jaxlm.cli", "train", f"--config={HERE.parents[1] / 'configs/quickstart.py'}"]
        command += [f"--config.{name}={value}" for name, value in settings.items()] + [f"--workdir={folder}"]
        subprocess.run(command, check=True)
        lines = _read(folder)
    return lines


def _read(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def held_out(lines: list[dict]) -> dict[int, float]:
    """Returns the held-out loss in nats by step."""
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "evaluation"}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of the values and half the width of its 95% interval by Student's t."""
    return float(values.mean()), STUDENT_975[len(values) - 1] * float(values.std(ddof=1)) / len(values) ** 0.5


def main() -> None:
    """Trains the missing runs, and writes and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/bfloat16"))
    workdir = parser.parse_args().workdir
    losses = {dtype: [held_out(train(workdir, dtype, seed)) for seed in SEEDS] for dtype in DTYPES}
    steps = sorted(losses["float32"][0])
    curves = {dtype: np.array([[run[step] for step in steps] for run in runs]) for dtype, runs in losses.items()}

    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dtype", "seed", "step", "held_out_loss"])
        for dtype, runs in curves.items():
            for seed, run in zip(SEEDS, runs, strict=True):
                writer.writerows([dtype, seed, step, f"{loss:.4f}"] for step, loss in zip(steps, run, strict=True))

    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1], layout="constrained")
    for dtype, colour in zip(DTYPES, ("C1", "C0"), strict=True):
        above.plot(steps, curves[dtype].T, color=colour, linewidth=1)
        above.plot([], [], color=colour, label=f"{dtype}, seeds {', '.join(map(str, SEEDS))}")
    above.set(ylabel="held-out loss, nats")
    above.legend()
    difference = curves["bfloat16"] - curves["float32"]
    spread = curves["float32"].std(0, ddof=1)
    below.fill_between(steps, -spread, spread, color="C0", alpha=0.2, label="float32's deviation between seeds")
    below.plot(steps, difference.T, color="C1", linewidth=1)
    below.axhline(0, color="black", linewidth=0.5)
    below.set(xlabel="step", ylabel="bfloat16 - float32,\nsame seed")
    below.legend()
    figure.savefig(HERE / "curves.png", dpi=120)

    mean, half = interval(difference[:, -1])
    for dtype, runs in curves.items():
        last = runs[:, -1]
        print(f"{dtype}: {', '.join(f'{loss:.3f}' for loss in last)} nats, standard deviation {last.std(ddof=1):.4f}")
    print(f"bfloat16 - float32, same seed: {mean:+.4f} nats, 95% from {mean - half:+.4f} to {mean + half:+.4f}")


if __name__ == "__main__":
    main()
