"""What `jaxlm prepare` shows: how far it is, and the closing table."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from jaxlm.data.sources import Tally

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


def closing_table(
    stores: Mapping[str, Any], paths: dict[str, str], tallies: dict[str, Tally], seconds: dict[str, float]
) -> str:
    """Returns a table of the stores (name -> store, and the path that it came from), and what was dropped and why."""
    rows = [("store", "documents", "bytes", "tokens", "bytes/token", "from")]
    for name, store in stores.items():
        counts = f"{store.documents:,}", f"{store.text_bytes:,}", f"{store.tokens:,}"
        rows.append((name, *counts, f"{store.text_bytes / store.tokens:.2f}", paths.get(name, "data.path, by hash")))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]) for row in rows
    ]
    for name, tally in tallies.items():
        for reason, count in sorted(tally.dropped.items()):
            places = f" (the first: {'; '.join(tally.places[reason])})" if reason in tally.places else ""
            lines.append(f"{name}: dropped {count:,} {reason}{places}")
        if tally.cut:
            lines.append(f"{name}: cut {tally.cut:,} documents that were too long (data.max_document_characters)")
    if not any(name.startswith("held_out/") for name in stores):
        lines.append("no held-out set: data.held_out names none, and no document fell into data.held_out_fraction")
    lines.append("seconds: " + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items()))
    return "\n".join(lines)
