"""What `jaxlm prepare` shows: how far it is, and the closing table."""

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Says on standard error how far it is: a bar on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.title, self.documents, self.bytes, self.total = "", 0, 0, 0
        self.said = time.monotonic()

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
            self.bar = Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def begin(self, title: str, total: int = 0) -> None:
        """Begins a phase of `total` bytes, 0 where that is not known."""
        self.title, self.documents, self.bytes, self.total = title, 0, 0, total
        if self.bar:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.bar.add_task(title, total=total or None)
        else:
            print(title, file=sys.stderr, flush=True)

    def advance(self, documents: int, size: int) -> None:
        """Adds what is done, documents and bytes."""
        self.documents += documents
        self.bytes += size
        now = time.monotonic()
        if now - self.said < (0.2 if self.bar else SECONDS_BETWEEN_LINES):
            return
        self.said = now
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.bytes)
        else:
            share = f" of {self.total / 1e6:,.0f}" if self.total else ""
            done = f"{self.documents:,} documents, {self.bytes / 1e6:,.0f}{share} MB"
            print(f"{self.title}: {done}", file=sys.stderr, flush=True)
