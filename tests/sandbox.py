"""A sandbox directory for a small training run that faults are injected into, and the check of how the run ended."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
SETTINGS = (
    "data.document=paragraph", "data.workers=1", "data.held_out_fraction=0.05", "data.shard_bytes=65536",
    "tokenizer.vocab_size=80", "data.sequence_length=32", "model.layers=1", "model.width=32",
    "model.feed_forward_width=64", "train.batch_size=8", f"train.steps={STEPS}", "schedule.name=constant",
    "schedule.warmup=0", "checkpoint.every=10", "evaluation.every=25", "logging.every=1",
    "logging.tensorboard=false", "logging.curve=false",
)  # fmt: skip
TIMEOUT = 600  # seconds after which a command counts as hung
HUNG = 124


class Outcome(NamedTuple):
    """Exit status, standard output and standard error of a finished command."""

    status: int
    output: str
    errors: str

    @property
    def checksum(self) -> str:
        """The params sha256 that the command printed; empty if it printed none."""
        return self.output.rpartition("params sha256 ")[2].split()[0] if "params sha256 " in self.output else ""

    @property
    def message(self) -> str:
        """The error message; empty unless the command ended with exit status 1 and exactly one message."""
        messages = [line for line in self.errors.splitlines() if line.startswith("jaxlm: ")]
        noise = any(word in self.errors for word in ("Traceback", "Exception ignored"))
        return messages[0].removeprefix("jaxlm: ") if self.status == 1 and len(messages) == 1 and not noise else ""


class Result(NamedTuple):
    """One injected fault: what it was, when and where it hit, the outcome, and whether the run recovered."""

    fault: str
    moment: str
    where: str
    outcome: str
    passed: bool
    repeated: int | None = None  # updates computed twice because of a kill

    def line(self) -> str:
        """Returns one line of a report."""
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.fault:<9} {self.moment:<26} {self.where:<52} {self.outcome}"


class Reference(NamedTuple):
    """An undisturbed run: its checksum, the seconds of each stage, the number of operations that changed files."""

    checksum: str
    seconds: dict[str, float]
    operations: int


class Sandbox:
    """A directory with everything that a small run reads and writes, except its text.

    `launch` is put in front of each command line, for a launcher of several processes.
    """

    def __init__(self, folder: Path, text: Path, settings: Sequence[str] = (), launch: Sequence[str] = ()) -> None:
        self.folder, self.text, self.settings, self.launch = folder.resolve(), text, tuple(settings), tuple(launch)
        self.workdir, self.cache = self.folder / "run", self.folder / "cache"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.compiled: Path | None = None  # the sandbox's own cache of compiled programs

    def uncache_step(self) -> None:
        """Forces the next run to compile its training step, by a copy of the compilation cache without the step."""
        self.compiled = self.folder / "compiled"
        source, steps = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", "")), "jit_train_step*"
        if source.is_dir():
            shutil.copytree(source, self.compiled, ignore=shutil.ignore_patterns(steps), dirs_exist_ok=True)
        for program in self.compiled.glob(steps):
            program.unlink()

    def arguments(self, *extra: str, text: str = "", cache: str = "", workdir: str = "") -> list[str]:
        """Returns the arguments of `jaxlm`; paths are absolute unless given."""
        settings = [f"data.path={text or self.text}", f"data.cache={cache or self.cache}", *SETTINGS, *self.settings]
        return ["train", f"--config={ROOT / 'configs' / 'mini.py'}", f"--workdir={workdir or self.workdir}",
                *(f"--config.{setting}" for setting in (*settings, *extra))]  # fmt: skip

    def start(
        self, *extra: str, arguments: list[str] | None = None, faults: dict[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen:
        """Starts the command in a new process, with `faults` as environment variables (see `tests/injected.py`).

        Wait for it with `finish`.
        """
        program = [str(ROOT / "tests" / "injected.py")] if faults else ["-m", "jaxlm.cli"]
        command = [*self.launch, sys.executable, *program, *(arguments or self.arguments(*extra))]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | (faults or {})
        if self.compiled:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.compiled)
        return start_process(command, env=environment, **popen)

    def run(self, *extra: str, **more: Any) -> Outcome:
        """Runs the command in a new process and waits for its end."""
        return finish(self.start(*extra, **more))

    def run_in_process(self, *extra: str, arguments: list[str] | None = None) -> Outcome:
        """Runs the command in this process, which saves the time of the imports."""
        from jaxlm import cli

        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = cli.main(arguments or self.arguments(*extra))
            except Exception as error:
                return Outcome(1, output.getvalue(), f"Traceback: {error!r}")
        return Outcome(status, output.getvalue(), errors.getvalue())

    def resume(self, *extra: str) -> Outcome:
        """Runs the same command without a fault until it ends."""
        return self.run(*extra) if self.launch else self.run_in_process(*extra)

    def metrics(self) -> list[dict]:
        """Returns the complete lines of metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def start_steps(self) -> list[int]:
        """Returns the step at which each start or resume of the run began."""
        return [line["step"] for line in self.metrics() if line["kind"] == "start"]

    def last_step(self) -> int:
        """Returns the last step in the log."""
        return next((line["step"] for line in reversed(self.metrics()) if line["kind"] in ("train", "start")), 0)

    def stage(self, starts: int) -> str:
        """Returns the stage of a running command, judging by its files; the run had started `starts` times before."""
        lines = self.metrics()
        if not (self.workdir / "data.json").exists():
            return "prepare" if any(self.cache.glob(".*.jaxlm-partial")) else "start"
        if sum(line["kind"] == "start" for line in lines) <= starts:
            return "start"
        if any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
            return "save"
        if lines[-1]["kind"] == "start":
            return "compile"
        return "end" if self.last_step() >= STEPS else "steps"

    def copy_to(self, folder: Path) -> "Sandbox":
        """Returns a sandbox in `folder` with the same files; the paths in them are changed to the new directory."""
        shutil.copytree(self.folder, folder)
        copy = Sandbox(folder, self.text, self.settings, self.launch)
        for name in ("data.json", "config.json"):
            file = copy.workdir / name
            content = json.loads(file.read_text().replace(str(self.folder), str(copy.folder)))
            content.pop("crc32", None)
            file.write_text(json.dumps(content, indent=2))
        return copy


def start_process(command: Sequence[str], **popen: Any) -> subprocess.Popen:
    """Starts a command whose output goes to temporary files; wait for it with `finish`."""
    files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]  # noqa: SIM115
    process = subprocess.Popen(command, stdout=files[0], stderr=files[1], **popen)
    process.files = files  # type: ignore[attr-defined]
    return process


def finish(process: subprocess.Popen) -> Outcome:
    """Waits for a process of `start_process`; kills it after TIMEOUT seconds and returns the status HUNG."""
    status = HUNG
    for _ in range(TIMEOUT * 20):  # counted, not measured by the clock: the whole machine may be suspended meanwhile
        if process.poll() is not None:
            status = process.returncode
            break
        time.sleep(0.05)
    else:
        process.kill()
        process.wait()
    texts = []
    for file in process.files:  # type: ignore[attr-defined]
        file.seek(0)
        texts.append(file.read())
        file.close()
    return Outcome(status, *texts)


def reference_run(sandbox: Sandbox) -> Reference:
    """Runs the command undisturbed, including the compilation of its training step."""
    sandbox.resume("train.steps=1", "evaluation.every=1")  # compiles everything else that is not cached
    shutil.rmtree(sandbox.workdir)
    shutil.rmtree(sandbox.cache)
    sandbox.uncache_step()
    trace = sandbox.folder / "trace.txt"
    process = sandbox.start(faults={"FAULT_FOLDER": str(sandbox.folder), "FAULT_TRACE": str(trace)})
    seconds: dict[str, float] = {}
    last = time.monotonic()
    while process.poll() is None:
        stage = sandbox.stage(0)
        time.sleep(0.005)
        now = time.monotonic()
        seconds[stage] = seconds.get(stage, 0) + now - last
        last = now
    outcome = finish(process)
    assert outcome.status == 0, outcome.errors
    return Reference(outcome.checksum, seconds, len(trace.read_text().splitlines()))


def check_outcome(
    fault: str, moment: str, where: str, outcome: Outcome, checksum: str, resumed: Outcome | None
) -> Result:
    """Returns the result of a fault: passed if the run ended with the parameters of the reference, or with one message.

    `resumed` is the outcome of the same command without the fault; if given, it must end with those parameters.
    """
    if outcome.status == 0:
        same = outcome.checksum == checksum
        return Result(fault, moment, where, "same parameters" if same else f"OTHER {outcome.checksum[:12]}", same)
    if not outcome.message:
        what = "it hangs" if outcome.status == HUNG else f"status {outcome.status}"
        return Result(fault, moment, where, f"{what}: {outcome.errors[-400:]}", False)
    if resumed is None:
        return Result(fault, moment, where, f'"{outcome.message}"', True)
    same = resumed.status == 0 and resumed.checksum == checksum
    end = "same parameters" if same else f"status {resumed.status} {resumed.checksum[:12]} {resumed.errors[-400:]}"
    return Result(fault, moment, where, f'"{outcome.message}"; resumed: {end}', same)
