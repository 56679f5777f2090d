"""Shared by compare_peers and gpu_checks: shapes, the peers' commands, processes that stay warm, and tables."""

import contextlib
import dataclasses
import datetime
import json
import os
import queue
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from jaxlm.config import check_config, default_config
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.flops import training_flops
from jaxlm.model.presets import PRESETS
from jaxlm.performance.bench import shape_config
from jaxlm.storage import write_text

ROOT = Path(__file__).resolve().parent.parent.parent
VOCAB, RATE = 30_522, 0.15
ROWS = {"4x256": "32x128", "4x512": "16x128", "12x768": "8x128", "modernbert_base": "4x512:4"}  # default rows per shape
BERT_PEERS = {
    "Transformers": ("transformers", []),
    "Transformers, bf16": ("transformers", ["--bf16"]),
    "Transformers, compiled": ("transformers", ["--compile"]),
    "Transformers, bf16, compiled": ("transformers", ["--bf16", "--compile"]),
    "Transformers, bf16, compiled, head at masked tokens": ("transformers", ["--bf16", "--compile", "--sparse"]),
    "KerasHub on JAX": ("keras", []),
    "KerasHub on JAX, bf16": ("keras", ["--bf16"]),
}
MODERNBERT_PEERS = {name: BERT_PEERS[name] for name in list(BERT_PEERS)[:4]}
MODULES = {"transformers": ("torch", "transformers"), "keras": ("keras", "keras_hub")}  # that each peer imports


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its batch: rows, tokens per row, and documents packed into each of jaxlm's rows."""

    name: str  # LAYERSxWIDTH, a BERT with heads of 64, or the name of a preset
    batch: int
    length: int
    documents: int

    def __str__(self) -> str:
        packed = f", {self.documents} documents per row" if self.documents > 1 else ""
        return f"{self.name}, batch {self.batch} x {self.length}{packed}"

    @property
    def argument(self) -> str:
        """Returns the shape as `read_shape` takes it."""
        return f"{self.name}:{self.batch}x{self.length}:{self.documents}"

    @property
    def preset(self) -> bool:
        return self.name in PRESETS

    @property
    def modern(self) -> bool:
        return self.name.startswith("modernbert")

    @property
    def tokens(self) -> int:
        """Returns the tokens per step."""
        return self.batch * self.length

    def config(self) -> Any:
        """Returns the config that jaxlm trains: AdamW, 15% of the tokens predicted, the preset's own dropout."""
        if not self.preset:
            return shape_config(self.name, VOCAB, self.batch, self.length)
        config = default_config()
        config.model.update(PRESETS[self.name])
        if config.model.positions == "learned":
            config.model.max_positions = max(config.model.max_positions, self.length)
        config.train.batch_size, config.data.sequence_length = self.batch, self.length
        config.optimizer.learning_rate, config.masking.rate = 1e-4, RATE
        check_config(config)
        return config

    @property
    def encoder(self) -> Any:
        return encoder_config(self.config().model)

    def flops(self, contender: str) -> float:
        """Returns the FLOPs of one step as a contender computes it.

        Transformers computes the logits of every token unless its head is restricted to the masked ones, and full
        attention in ModernBERT's local layers.
        """
        encoder, predictions = self.encoder, int(RATE * self.tokens)
        if contender.startswith("Transformers"):
            encoder = dataclasses.replace(encoder, layer_pattern="g")
            if not self.modern and "masked" not in contender:
                predictions = self.tokens
        return training_flops(encoder, self.batch, self.length, predictions)


def read_shape(text: str) -> Shape:
    """Returns the shape `NAME[:BATCHxLENGTH[:DOCUMENTS]]`. Raises UserError."""
    name, _, rows = text.partition(":")
    found = re.fullmatch(r"(\d+)x(\d+)(?::(\d+))?", rows or ROWS.get(name, "8x128"))
    known = name in PRESETS and name.startswith(("bert", "modernbert"))
    if not found or not (known or re.fullmatch(r"\d+x\d+", name)):
        names = ", ".join(preset for preset in PRESETS if preset.startswith(("bert", "modernbert")))
        raise UserError(
            f"--shapes: {text}: expected NAME[:BATCHxLENGTH[:DOCUMENTS]]; NAME is LAYERSxWIDTH or one of {names}"
        )
    return Shape(name, int(found[1]), int(found[2]), int(found[3] or 1))


def peer_command(shape: Shape, contender: str, python: str, steps: int, warmup: int) -> list[str]:
    """Returns the command that times a peer and prints JSON."""
    library, flags = BERT_PEERS[contender]
    encoder = shape.encoder
    sizes = {
        "layers": encoder.layers, "width": encoder.width, "heads": encoder.heads, "vocab": encoder.vocab_size,
        "feed-forward": encoder.feed_forward_width, "rate": RATE, "steps": steps, "warmup": warmup,
        "batch": shape.batch, "length": shape.length,
    }  # fmt: skip
    kind = ["--model=modernbert"] if shape.modern else []
    script = ROOT / "scripts" / "peers" / f"{library}_mlm.py"
    return [python, str(script), *kind, *[f"--{name}={size}" for name, size in sizes.items()], *flags]


def has_modules(python: str, names: tuple[str, ...]) -> bool:
    """Returns whether a Python interpreter exists and can import these modules."""
    check = f"import importlib.util as u; assert all(map(u.find_spec, {names!r}))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def last_line(text: str) -> str:
    """Returns the last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


class Failed(Exception):
    """What went wrong in a process, in one sentence."""


class Process:
    """A process that prints JSON objects, one per line; other lines on its standard output are ignored.

    A process that stays warm prints {"ready": true} once it has compiled, then one object for each line that it reads.
    It is killed, with all processes that it started, when the context ends.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        self._process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, start_new_session=True,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._lines.put(line)
        self._lines.put(None)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def answer(self, deadline: float) -> dict[str, Any] | None:
        """Returns the next object, or None if the process has ended without an error.

        Raises Failed if the process fails, and TimeoutError at `deadline`, in seconds of `time.monotonic`.
        """
        try:
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            raise TimeoutError from None
        if line is not None:
            return json.loads(line)
        self._lines.put(None)  # for the next call
        if self._process.wait() == 0:
            return None
        self._errors.seek(0)
        raise Failed(last_line(self._errors.read().decode(errors="replace"))[:300])

    def ask(self, deadline: float) -> dict[str, Any]:
        """Returns the answer to one line on the standard input of a process that stays warm. Raises as `answer`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `answer` reports why
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        if (found := self.answer(deadline)) is None:
            raise Failed("the process ended early")
        return found


def markdown(rows: list[list[str]]) -> str:
    """Returns a Markdown table, the first row as its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def profile_rows(profile: dict[str, Any]) -> list[list[str]]:
    """Returns the table of a profile as `jaxlm bench --json --profile` prints it, heading first."""
    rows = [["kind", "ms per step", "share", "GFLOP/s of its products"]]
    for kind, time_ in sorted(profile["kinds"].items(), key=lambda entry: -entry[1]["seconds"]):
        rate = time_["product_flops_per_second"]
        cells = [kind, f"{time_['seconds'] * 1e3:,.1f}", f"{time_['share']:.1%}", f"{rate / 1e9:,.0f}" if rate else ""]
        rows.append(cells)
    whole, gap = profile["step_seconds"], profile["no_kernel_seconds"]
    rows.append(["no kernel", f"{gap * 1e3:,.1f}", f"{gap / whole:.1%}", ""])
    return [*rows, ["whole step", f"{whole * 1e3:,.1f}", "", ""]]


def median_and_range(values: list[float]) -> str:
    """Returns `2.00 (1.00 to 3.00)`, or nothing if there are no values."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def provenance(results: list[dict[str, Any]], minutes: float | None, program: str) -> str:
    """Returns where, when and by which command results were measured, with the versions of all libraries."""
    versions: dict[str, str] = {}
    for result in results:
        versions |= result.get("versions", {})
    versions.pop("jax", None)  # jaxlm's own is given below; a peer's environment may have another
    machine = next((result["machine"] for result in results if "machine" in result), None)
    where = ""
    if machine:
        gpu = "" if machine["platform"] == "cpu" else f"{machine['device_kind']}, "
        commit = machine["commit"] or "unknown"
        where = f"{gpu}{machine['processor']}, {machine['cores']} cores; "
        where += f"commit {commit[:12]}{'+changes' if '+' in commit else ''}; "
        versions = {name: machine["versions"][name] for name in ("jaxlm", "jax", "flax", "optax")} | versions
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    arguments = [shlex.quote(a) for a in sys.argv[1:] if not a.startswith(("--python", "--output"))]
    took = "" if minutes is None else f", {minutes:.0f} minutes"
    return (
        f"{where}{words}; Python {sys.version.split()[0]}; {datetime.date.today().isoformat()}{took}; "
        f"`{' '.join([program, *arguments])}`."
    )


def write_section(path: Path, name: str, content: str) -> None:
    """Replaces the text between the markers of a section of a document; appends the section if it is missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, found, rest = text.partition(begin)
    if not found:
        before, rest = text.rstrip("\n") + "\n\n" if text else "", f"{end}\n"
    after = rest.partition(end)[2]
    write_text(path, f"{before}{begin}\n{content}\n{end}{after}")
