"""Faults for the real commands: kills at any moment, full disks, damaged files, NaN, wrong clocks, other folders.

Each fault is a generator of `Result`s, one for each time that it struck; `tests/test_faults.py` tries a few of each,
`scripts/soak` as many as it is told. What is demanded is always the same: the command ends in the parameters of one
that was never disturbed, or in one sentence with exit status 1, and the same command, undisturbed, then ends in them.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
TIMEOUT = 600  # seconds of one command, after which it hangs
HUNG = 124


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def checksum(self) -> str:
        """The params sha256 that it printed, if any."""
        return self.output.rpartition("params sha256 ")[2].split()[0] if "params sha256 " in self.output else ""

    @property
    def sentence(self) -> str:
        """What it said at its end; empty where it ended otherwise than by exit status 1 and one sentence."""
        said = [line for line in self.errors.splitlines() if line.startswith("jaxlm: ")]
        noise = any(word in self.errors for word in ("Traceback", "Exception ignored"))
        return said[0].removeprefix("jaxlm: ") if self.status == 1 and len(said) == 1 and not noise else ""


class Result(NamedTuple):
    """One fault: what was done and when, where it struck, how it ended, and whether that is as promised."""

    fault: str
    moment: str
    where: str
    outcome: str
    good: bool
    redone: int | None = None  # updates, after a kill

    def line(self) -> str:
        """One line of a report."""
        return f"{'ok  ' if self.good else 'FAIL'}  {self.fault:<9} {self.moment:<26} {self.where:<52} {self.outcome}"


class Reference(NamedTuple):
    """A run that was never disturbed: its result, the seconds of its stages, the operations that changed files."""

    checksum: str
    seconds: dict[str, float]
    operations: int


class Scene:
    """A folder with all that a small run reads and writes: its text, its work directory, its cache of stores.

    `launch` stands before each command line, for a launcher of several processes.
    """

    def __init__(self, folder: Path, text: Path, settings: Sequence[str] = (), launch: Sequence[str] = ()) -> None:
        self.folder, self.text, self.settings, self.launch = folder.resolve(), text, tuple(settings), tuple(launch)
        self.workdir, self.cache = self.folder / "run", self.folder / "cache"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.compiled: Path | None = None  # a cache of compiled programs of its own

    def forget_step(self) -> None:
        """Lets the next run compile its step: its cache is a copy that lacks it."""
        self.compiled = self.folder / "compiled"
        source, forgotten = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", "")), "jit_train_step*"
        if source.is_dir():
            shutil.copytree(source, self.compiled, ignore=shutil.ignore_patterns(forgotten), dirs_exist_ok=True)
        for known in self.compiled.glob(forgotten):
            known.unlink()

    def arguments(self, *extra: str, text: str = "", cache: str = "", workdir: str = "") -> list[str]:
        """The arguments of `jaxlm`; paths as they are given, else absolute."""
        settings = [f"data.path={text or self.text}", f"data.cache={cache or self.cache}", *SETTINGS, *self.settings]
        return ["train", f"--config={ROOT / 'configs' / 'mini.py'}", f"--workdir={workdir or self.workdir}",
                *(f"--config.{setting}" for setting in (*settings, *extra))]  # fmt: skip

    def start(
        self, *extra: str, arguments: list[str] | None = None, faults: dict[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen:
        """Starts the run as a process of its own; `finish` waits for it."""
        program = [str(ROOT / "tests" / "injected.py")] if faults else ["-m", "jaxlm.cli"]
        command = [*self.launch, sys.executable, *program, *(arguments or self.arguments(*extra))]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | (faults or {})
        if self.compiled:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.compiled)
        files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]  # noqa: SIM115
        process = subprocess.Popen(command, env=environment, stdout=files[0], stderr=files[1], **popen)
        process.files = files  # type: ignore[attr-defined]
        return process

    def run(self, *extra: str, **more: Any) -> Outcome:
        """Runs it to its end as a process of its own."""
        return finish(self.start(*extra, **more))

    def run_here(self, *extra: str, arguments: list[str] | None = None) -> Outcome:
        """Runs it in this process, which spares the seconds of its imports."""
        from jaxlm import cli

        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = cli.main(arguments or self.arguments(*extra))
            except Exception as error:
                return Outcome(1, output.getvalue(), f"Traceback: {error!r}")
        return Outcome(status, output.getvalue(), errors.getvalue())

    def go_on(self, *extra: str) -> Outcome:
        """Runs the same command undisturbed, to its end."""
        return self.run(*extra) if self.launch else self.run_here(*extra)

    def lines(self) -> list[dict]:
        """The whole lines of metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def starts(self) -> list[int]:
        """The updates that had been done whenever the run began to train or went on."""
        return [line["step"] for line in self.lines() if line["kind"] == "start"]

    def reached(self) -> int:
        """The update that was logged last."""
        return next((line["step"] for line in reversed(self.lines()) if line["kind"] in ("train", "start")), 0)

    def stage(self, starts: int) -> str:
        """Where a run is, by its files; it had begun `starts` times before."""
        lines = self.lines()
        if not (self.workdir / "data.json").exists():
            return "prepare" if any(self.cache.glob(".*.partial")) else "start"
        if sum(line["kind"] == "start" for line in lines) <= starts:
            return "start"
        if any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
            return "save"
        if lines[-1]["kind"] == "start":
            return "compile"
        return "end" if self.reached() >= STEPS else "steps"

    def copied(self, folder: Path) -> "Scene":
        """Returns a scene with the same files elsewhere, as if it had been made there."""
        shutil.copytree(self.folder, folder)
        copy = Scene(folder, self.text, self.settings, self.launch)
        for name in ("data.json", "config.json"):
            file = copy.workdir / name
            content = json.loads(file.read_text().replace(str(self.folder), str(copy.folder)))
            content.pop("crc32", None)
            file.write_text(json.dumps(content, indent=2))
        return copy


def finish(process: subprocess.Popen) -> Outcome:
    """Waits for a command that `Scene.start` has started."""
    status = HUNG
    for _ in range(TIMEOUT * 20):  # counted, not by the clock: somebody may have stopped us both for a while
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


def refer(scene: Scene) -> Reference:
    """Runs a scene undisturbed, its step not yet compiled."""
    scene.go_on("train.steps=1", "evaluation.every=1")  # compiles the rest, where it is not in the cache
    shutil.rmtree(scene.workdir)
    shutil.rmtree(scene.cache)
    scene.forget_step()
    trace = scene.folder / "trace.txt"
    process = scene.start(faults={"FAULT_FOLDER": str(scene.folder), "FAULT_TRACE": str(trace)})
    seconds: dict[str, float] = {}
    last = time.monotonic()
    while process.poll() is None:
        stage = scene.stage(0)
        time.sleep(0.005)
        now = time.monotonic()
        seconds[stage] = seconds.get(stage, 0) + now - last
        last = now
    outcome = finish(process)
    assert outcome.status == 0, outcome.errors
    return Reference(outcome.checksum, seconds, len(trace.read_text().splitlines()))


def judge(fault: str, moment: str, where: str, outcome: Outcome, checksum: str, again: Outcome | None) -> Result:
    """Judges a disturbed command, and the undisturbed one that went on after it, where it did not reach its end."""
    if outcome.status == 0:
        same = outcome.checksum == checksum
        return Result(fault, moment, where, "same parameters" if same else f"OTHER {outcome.checksum[:12]}", same)
    if not outcome.sentence:
        what = "it hangs" if outcome.status == HUNG else f"status {outcome.status}"
        return Result(fault, moment, where, f"{what}: {outcome.errors[-400:]}", False)
    if again is None:
        return Result(fault, moment, where, f'"{outcome.sentence}"', True)
    same = again.status == 0 and again.checksum == checksum
    then = "same parameters" if same else f"status {again.status} {again.checksum[:12]} {again.errors[-400:]}"
    return Result(fault, moment, where, f'"{outcome.sentence}"; again: {then}', same)


# kill -9 and SIGTERM

MOMENTS = ("prepare", "operation", "compile", "steps", "save", "operation", "end")


class _Strike(NamedTuple):
    moment: str
    where: str
    starts: int  # how often the run had begun to train by then
    reached: int


def kills(make: Callable[[], Scene], reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Kills runs `count` times in all, each several times on its way; every one must end in the same parameters.

    The moments: by the clock within a stage (preparation, compilation with its cache cold, updates, a save under way,
    the end), and before the n-th operation that changes a file, which also strikes between a temporary name and its
    rename.
    """
    killed = run = 0
    while killed < count:
        run += 1
        scene, struck = make(), list[_Strike]()
        plan = [moment for moment in MOMENTS if rng.random() < 0.5] or [rng.choice(MOMENTS)]
        outcome: Outcome | None = None
        for moment in plan[: count - killed]:
            said, process = _strike(scene, moment, reference, rng)
            if process.poll() is None and moment != "operation":
                where = scene.stage(len(said.starts)) + f" at step {scene.reached()}"
                process.kill()
            outcome = finish(process)
            if outcome.status == 0:  # it reached its end first
                break
            if moment == "operation":
                where = "before " + outcome.errors.rpartition("killed before ")[2].strip().replace(
                    ".orbax-checkpoint", "…"
                )
            if outcome.status != -signal.SIGKILL:
                where = f"status {outcome.status} {outcome.errors[-400:]}"
            struck.append(_Strike(said.moment, where, len(scene.starts()), scene.reached()))
        killed += len(struck)
        if outcome is None or outcome.status:
            outcome = scene.go_on()
        starts = scene.starts()
        ends = judge("kill", "", "", outcome, reference.checksum, None)
        for strike in struck:
            later = starts[strike.starts] if strike.starts < len(starts) else STEPS
            redone = max(strike.reached - later, 0)
            good = ends.good and bool(outcome.checksum) and redone <= 10 and not strike.where.startswith("status")
            went_on = f"went on from {later}, {redone} redone, {ends.outcome}"
            yield Result("kill", f"run {run}: {strike.moment}", strike.where, went_on, good, redone)
        shutil.rmtree(scene.folder)


class _Plan(NamedTuple):
    moment: str
    starts: list[int]


def _strike(
    scene: Scene, moment: str, reference: Reference, rng: random.Random, last: int = STEPS - 1
) -> tuple[_Plan, subprocess.Popen]:
    """Starts the run and returns when its moment has come, at update `last` at the latest.

    A run that is to kill itself is only started.
    """
    starts, reached = scene.starts(), scene.reached()
    if moment == "operation":
        left = 1 if reached == 0 else max(1 - reached / STEPS, 0.1)
        number = rng.randint(1, max(int(reference.operations * left), 1))
        faults = {"FAULT_FOLDER": str(scene.folder), "FAULT_OPERATION": str(number)}
        process = scene.start(faults=faults)
        return _Plan(f"operation {number}", starts), process
    if moment == "compile":
        scene.forget_step()
    target = rng.randint(min(reached + 1, last), last)
    wait = rng.random() * (rng.random() * 0.03 if moment == "save" else reference.seconds.get(moment, 0.1))
    wait = rng.random() * 0.01 if moment == "steps" else wait
    process = scene.start()
    while process.poll() is None:
        stage, step = scene.stage(len(starts)), scene.reached()
        begun = len(scene.starts()) > len(starts)
        if moment in ("steps", "save"):
            if begun and step >= target and moment in (stage, "steps"):
                break
            if stage == "end":
                break
        elif stage == moment or (begun and moment in ("prepare", "compile") and stage != "start"):
            break
        time.sleep(0.001)
    end = time.monotonic() + wait
    while time.monotonic() < end and (moment not in ("prepare", "compile") or scene.stage(len(starts)) == moment):
        time.sleep(0.001)
    return _Plan(f"{moment} + {wait:.3f} s" + (f", {target}" if moment in ("steps", "save") else ""), starts), process


def signals(
    make: Callable[[], Scene], reference: Reference, rng: random.Random, moments: Sequence[str],
    names: Sequence[str] = ("SIGTERM",),
) -> Iterator[Result]:  # fmt: skip
    """Sends a signal at each of the moments; the run ends in a sentence and the same command goes on."""
    for number, moment in enumerate(moments):
        name = names[number % len(names)]
        scene = make()
        if moment == "start":  # once Python has come up, while libraries are imported
            process = scene.start()
            wait = 0.5 + rng.random()
            time.sleep(wait)
            plan = _Plan(f"start + {wait:.3f} s", [])
        else:
            plan, process = _strike(scene, moment, reference, rng, STEPS // 2)  # which leaves it time to be stopped
        where = f"{scene.stage(0)} at step {scene.reached()}"
        process.send_signal(getattr(signal, name))
        outcome = finish(process)
        saved = scene.reached()
        again = None if outcome.status == 0 else scene.go_on()
        result = judge(name, plan.moment, where, outcome, reference.checksum, again)
        if again and saved and outcome.sentence:  # what was saved is not done again
            result = result._replace(good=result.good and scene.starts()[-1] == saved)
        yield result
        shutil.rmtree(scene.folder)


# Disks


def full_disks(make: Callable[[], Scene], reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Runs under a limit on the size of files, and on small disks, and again with more room on the same disk."""
    for number in range(count):
        scene = make()
        if number % 2 == 0 or not can_mount():
            limit = int(10 ** rng.uniform(2, 5))
            outcome = scene.run(faults={"FAULT_FILE_BYTES": str(limit)})
            again = scene.go_on() if outcome.status else None
            yield judge(
                "disk", f"files of {limit:,} bytes", f"step {scene.starts()[-1:]}", outcome, reference.checksum, again
            )
        else:
            pages = rng.randint(1, 400)
            with mounted(scene.folder, pages * 4096):
                outcome = scene.run()
                where = f"at step {scene.reached()}"
                subprocess.run(["mount", "-o", "remount,size=64m", str(scene.folder)], check=True)
                again = scene.go_on() if outcome.status else None
            moment = f"disk of {pages * 4} KiB"
            yield judge("disk", moment, where, outcome, reference.checksum, again)
        shutil.rmtree(scene.folder)


def can_mount() -> bool:
    """Whether this process may mount a disk."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            bool(shutil.which("mount"))
            and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode == 0
            and subprocess.run(["umount", folder]).returncode == 0
        )


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """Lets a folder be a disk in memory of so many bytes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Lets nobody write in a folder: by a mount where this process may, since root ignores permissions, else by those.

    Raises PermissionError for a root that may not mount.
    """
    if can_mount():
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    elif os.geteuid() == 0:
        raise PermissionError("root ignores permissions, and may not mount here")
    else:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)


def read_only_folders(part: Scene, folder: Path, reference: Reference) -> Iterator[Result]:
    """Runs with a work directory, then with a cache, that cannot be written, of a run that has begun and of none."""
    for name in ("run", "cache"):
        for begun in (False, True):
            scene = part.copied(folder) if begun else Scene(folder, part.text)
            there = scene.folder / name
            there.mkdir(exist_ok=True)
            with read_only(there):
                outcome = scene.run_here()
            again = scene.run_here() if outcome.status else None
            moment = f"{name}/ of a run that has {'' if begun else 'not '}begun"
            yield judge("readonly", moment, "", outcome, reference.checksum, again)
            shutil.rmtree(folder)


# Damage


def damage(part: Scene, folder: Path, reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Flips a bit, or cuts or removes a file, in each file of a run that has begun, one at a time.

    What ends in a sentence must end in the same parameters once the file is as it was.
    """
    scene = part.copied(folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    order = [*files] * (count // len(files)) + rng.sample(files, count % len(files))
    for file in order:
        shutil.rmtree(folder)
        scene = part.copied(folder)
        path = folder / file
        content = bytearray(path.read_bytes())
        kind = rng.choice(("flip", "flip", "flip", "cut", "remove"))
        place = rng.randrange(len(content)) if content else 0
        if kind == "flip" and content:
            content[place] ^= 1 << (bit := rng.randrange(8))
            moment = f"bit {bit} of byte {place} flipped"
            path.write_bytes(content)
        elif kind == "remove" or not content:
            moment = "removed"
            path.rename(folder / "aside")
        else:
            moment = f"cut after {place} bytes"
            path.write_bytes(content[:place])
        outcome, again = scene.run_here(), None
        if outcome.status:
            shutil.rmtree(folder)
            again = part.copied(folder).run_here()
        yield judge("damage", moment, _short(file), outcome, reference.checksum, again)
    shutil.rmtree(folder, ignore_errors=True)


def _short(file: Path) -> str:
    return "/".join(piece if len(piece) < 28 else f"{piece[:8]}…" for piece in file.parts)


# NaN, clocks, folders


def not_a_number(part: Scene, folder: Path, reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Lets the parameters become NaN at some update."""
    for _ in range(count):
        scene = part.copied(folder)
        step = rng.randrange(part.reached() + 1, STEPS)
        outcome = scene.run(faults={"FAULT_NAN_STEP": str(step)})
        kept = sorted(int(entry.name) for entry in (scene.workdir / "checkpoints").iterdir())
        again = scene.run_here()
        result = judge("nan", f"after update {step}", f"checkpoints {kept}", outcome, reference.checksum, again)
        said = f"the checkpoint of step {kept[-1]} is kept" in outcome.sentence and kept[-1] <= step
        yield result._replace(good=result.good and said)
        shutil.rmtree(folder)


YEAR = 365.25 * 86400


def clocks(make: Callable[[], Scene], reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Sets the clock, and the times of all files, back and forth between the parts of a run."""
    for _ in range(count):
        scene, said = make(), []
        for years in rng.sample((-50, -1, 1, 70), 2):
            process = scene.start(faults={"FAULT_CLOCK": str(years * YEAR)})
            starts, target = len(scene.starts()), rng.randint(scene.reached() + 1, scene.reached() + 20)
            while process.poll() is None and not (len(scene.starts()) > starts and scene.reached() >= target):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            outcome = finish(process)
            said.append(f"{years:+d} years to step {scene.reached()}")
            if outcome.status and not outcome.sentence:
                break
            for number, path in enumerate(sorted(scene.folder.rglob("*"), reverse=True)):  # older checkpoints newer
                os.utime(path, (then := (time.time() + rng.choice((-50, 70)) * YEAR + number), then))
        else:
            outcome = scene.go_on()
        yield judge("clock", ", ".join(said), "", outcome, reference.checksum, None)
        shutil.rmtree(scene.folder)


def folders(part: Scene, folder: Path, reference: Reference) -> Iterator[Result]:
    """Begins with relative paths, and goes on from another working directory."""
    scene = Scene(folder, part.text)
    shutil.copy(part.text, folder / "text.txt")
    here = os.getcwd()
    relative = {"text": "text.txt", "cache": "cache"}
    try:
        os.chdir(folder)
        first = scene.run_here(arguments=scene.arguments("train.steps=20", workdir="run", **relative))
        assert first.status == 0, first.errors
        os.chdir("/")
        cases = {
            "the text under its old name": scene.arguments(**relative),
            "the text under its whole name": scene.arguments(text=str(folder / "text.txt")),
            "config.json": ["train", f"--config={scene.workdir / 'config.json'}", f"--workdir={scene.workdir}",
                            f"--config.train.steps={STEPS}"],
        }  # fmt: skip
        for name, arguments in cases.items():
            kept = folder.with_name("kept")
            shutil.copytree(scene.workdir, kept)
            outcome = scene.run_here(arguments=arguments)
            shutil.rmtree(scene.workdir)
            kept.rename(scene.workdir)
            yield judge("folder", name, "begun in another folder", outcome, reference.checksum, None)
    finally:
        os.chdir(here)
        shutil.rmtree(folder)


# Several processes

HEARTBEAT = 3  # seconds


def launch(scene: Scene, count: int, *extra: str) -> subprocess.Popen:
    """Starts the run as `count` processes; `finish` waits for it."""
    arguments = scene.arguments("train.compute_dtype=float32", f"mesh.heartbeat_seconds={HEARTBEAT}", *extra)
    command = [sys.executable, str(ROOT / "scripts" / "launch_local"), str(count), *arguments]
    files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]  # noqa: SIM115
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=files[0], stderr=files[1])
    process.files = files  # type: ignore[attr-defined]
    return process


def process_of(scene: Scene, index: int) -> int:
    """Returns the number that the system gave to process `index` of a run. Raises ProcessLookupError."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            if f"--workdir={scene.workdir}" in words and f"--config.mesh.process_id={index}" in words:
                return int(entry.name)
    raise ProcessLookupError(f"process {index} of {scene.workdir}")


def lost_processes(make: Callable[[], Scene], rng: random.Random, counts: Sequence[int] = (2, 4)) -> Iterator[Result]:
    """Kills and stops one of several processes, and demands that each other one names it within a minute.

    The same command must then end in the parameters of an undisturbed run of as many; and on half as many processes,
    which sum in another order, in the same last loss to rounding.
    """
    for count in counts:
        whole = make()
        undisturbed = finish(launch(whole, count))
        assert undisturbed.status == 0, undisturbed.errors
        for number, on in ((signal.SIGKILL, count), (signal.SIGSTOP, count // 2)):
            scene = make()
            lost, least, process = rng.randrange(count), rng.randrange(5, 35), launch(scene, count)
            while process.poll() is None and scene.reached() < least:
                time.sleep(0.02)
            step, pid, begin = scene.reached(), process_of(scene, lost), time.monotonic()
            os.kill(pid, number)
            others = [process_of(scene, index) for index in range(count) if index != lost]
            while any(Path(f"/proc/{other}").exists() for other in others) and time.monotonic() - begin < 120:
                time.sleep(0.02)
            seconds = time.monotonic() - begin
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)
            outcome = finish(process)
            named = outcome.errors.count(f"jaxlm: process {lost} was not heard of for {HEARTBEAT} s")
            noise = any(word in outcome.errors for word in ("Traceback", "Check failure"))
            again = finish(launch(scene, on))
            if on == count:
                same = again.checksum == undisturbed.checksum
                then = "same parameters" if same else f"OTHER {again.checksum[:12]}"
            else:
                gap = abs(last_loss(scene) - last_loss(whole))
                same, then = gap < 2e-5, f"last loss {gap:.1e} from the whole run's"
            good = again.status == 0 and same and named == count - 1 and not noise and seconds < 60
            how = "killed" if number == signal.SIGKILL else "stopped"
            then = then if again.status == 0 else again.errors[-300:]
            ended = f"{named} others named it, {seconds:.0f} s; on {on}: {then}"
            yield Result("processes", f"{lost} of {count} {how}", f"step {step}", ended, good)
            shutil.rmtree(scene.folder)
        shutil.rmtree(whole.folder)


def last_loss(scene: Scene) -> float:
    """Returns the training loss of the run's last update."""
    return next(line["loss"] for line in reversed(scene.lines()) if line["kind"] == "train")


# Leaks


class Sample(NamedTuple):
    """What a process holds."""

    step: int
    memory: int  # bytes, resident
    files: int
    threads: int


def held(pid: int, step: int) -> Sample:
    """Returns what a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(step, int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]))


def leaks(scene: Scene, steps: int, every: int, saving: int) -> tuple[list[Sample], Outcome]:
    """Trains many small updates, with saves and an evaluation each `saving`, and samples each `every`.

    A sample is of the moment that held least since the one before: a save under way has files and threads of its own.
    """
    settings = (f"train.steps={steps}", f"checkpoint.every={saving}", f"evaluation.every={saving}", "logging.every=10")
    process = scene.start(*settings)
    samples: list[Sample] = []
    looks: list[Sample] = []
    while process.poll() is None:
        step = scene.reached()
        with contextlib.suppress(OSError, KeyError):  # it ends just now
            looks += [held(process.pid, step)] if step else []
        if looks and step >= (samples[-1].step if samples else 0) + every:
            samples.append(Sample(step, *(min(column) for column in zip(*(look[1:] for look in looks), strict=True))))
            looks = []
        time.sleep(0.02)
    return samples, finish(process)


def judge_leaks(samples: list[Sample], outcome: Outcome, memory: int = 20 * 2**20) -> Result:
    """Judges the samples after the first tenth: hardly more memory, and no open file or thread more for each save."""
    later = [sample for sample in samples if sample.step > samples[-1].step / 10]
    # The least of each quarter: a leak is there at every moment.
    first, last = later[: max(len(later) // 4, 1)], later[-max(len(later) // 4, 1) :]
    names = ("memory", "files", "threads")
    before, after = ({name: min(getattr(one, name) for one in part) for name in names} for part in (first, last))
    flat = after["memory"] - before["memory"] < memory and all(after[name] <= before[name] + 2 for name in names[1:])
    grown = f"memory {(after['memory'] - before['memory']) / 2**20:+.1f} MiB, " + ", ".join(
        f"{name} {before[name]} then {after[name]}" for name in names[1:]
    )
    where = f"steps {first[0].step:,} to {last[-1].step:,}"
    return Result("leak", f"{len(samples)} looks", where, grown, flat and outcome.status == 0)
