"""Logs a run to Weights & Biases (logging.wandb=PROJECT). WANDB_MODE=offline keeps everything on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbTracker:
    """One run of a project; a resumed run continues it, because its id belongs to the work directory."""

    def __init__(self, project: str, workdir: Path, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=project, name=workdir.name, id=run_id, resume="allow", config=dict(config), dir=str(workdir)
        )
        self._run.define_metric(
            "*", step_metric="step"
        )  # its own count must grow, which that of a resumed run does not

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        self._run.finish()
