"""The services that a run can also be logged to, each an extra with a file of its own."""

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxlm.errors import UserError

TRACKERS = {
    "wandb": ("jaxlm.runtime.wandb_tracker", "WandbTracker"),
    "trackio": ("jaxlm.runtime.trackio_tracker", "TrackioTracker"),
}


class Tracker(Protocol):
    """A service to which the numbers of a run are sent."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_trackers(logging: Any) -> None:
    """Raises UserError if a setting names a project of a service whose package is not installed."""
    for name in TRACKERS:
        if logging[name] and importlib.util.find_spec(name) is None:
            raise UserError(f"logging.{name}={logging[name]} needs the package {name}: pip install 'jaxlm[{name}]'")


def open_trackers(logging: Any, workdir: Path, config: Mapping[str, Any]) -> dict[str, Tracker]:
    """Returns the trackers that are switched on. Raises UserError with the service's reason if one cannot be opened."""
    opened: dict[str, Tracker] = {}
    run_id = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:12]
    for name, (module, kind) in TRACKERS.items():
        if not logging[name]:
            continue
        try:
            opened[name] = getattr(importlib.import_module(module), kind)(logging[name], workdir, run_id, config)
        except Exception as error:
            for tracker in opened.values():
                tracker.close()
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"logging.{name}={logging[name]} cannot be opened: {reason}; fix that, or unset it"
            ) from error
    return opened
