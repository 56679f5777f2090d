"""Logs a run to Trackio (logging.trackio=PROJECT), which keeps it in a database on this machine; `trackio show`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrackioTracker:
    """One run of a project; a resumed run continues it, because its name belongs to the work directory."""

    def __init__(self, project: str, workdir: Path, run_id: str, config: Mapping[str, Any]) -> None:
        import trackio

        name = f"{workdir.name}-{run_id}"
        self._run = trackio.init(project=project, name=name, resume="allow", config=dict(config), embed=False)
        self._finish = trackio.finish

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._finish()
