"""Faults injected into real commands: kills, signals, full disks, damaged files, NaN, wrong clocks, moved directories.

Each fault is a generator that yields one `Result` per injection; `tests/test_faults.py` runs a few of each kind,
`scripts/soak` as many as requested. The requirement is always the same: the command ends with the parameters of an
undisturbed run, or with one message and exit status 1, and repeating it without the fault then gives those parameters.
"""

import contextlib
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
from typing import NamedTuple

from tests.sandbox import ROOT, STEPS, Outcome, Reference, Result, Sandbox, check_outcome, finish, start_process

# kill -9 and SIGTERM

MOMENTS = ("prepare", "operation", "compile", "steps", "save", "operation", "end")


class _Kill(NamedTuple):
    moment: str
    where: str
    starts: int  # number of times that the run had started to train by then
    last_step: int


def kills(make: Callable[[], Sandbox], reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Kills runs `count` times in total, some several times in a row; each run must end with the same parameters.

    A kill comes at a time within a stage (preparation, compilation without a cached step, updates, a save in progress,
    the end), or before the n-th operation that changes a file, which includes the moment between writing a temporary
    file and renaming it.
    """
    killed = run = 0
    while killed < count:
        run += 1
        sandbox, records = make(), list[_Kill]()
        moments = [moment for moment in MOMENTS if rng.random() < 0.5] or [rng.choice(MOMENTS)]
        outcome: Outcome | None = None
        for moment in moments[: count - killed]:
            plan, process = _start_and_wait(sandbox, moment, reference, rng)
            if process.poll() is None and moment != "operation":
                where = sandbox.stage(len(plan.starts)) + f" at step {sandbox.last_step()}"
                process.kill()
            outcome = finish(process)
            if outcome.status == 0:  # the run ended before the kill
                break
            if moment == "operation":
                where = "before " + outcome.errors.rpartition("killed before ")[2].strip().replace(
                    ".orbax-checkpoint", "…"
                )
            if outcome.status != -signal.SIGKILL:
                where = f"status {outcome.status} {outcome.errors[-400:]}"
            records.append(_Kill(plan.moment, where, len(sandbox.start_steps()), sandbox.last_step()))
        killed += len(records)
        if outcome is None or outcome.status:
            outcome = sandbox.resume()
        starts = sandbox.start_steps()
        end = check_outcome("kill", "", "", outcome, reference.checksum, None)
        for kill in records:
            resumed = starts[kill.starts] if kill.starts < len(starts) else STEPS
            repeated = max(kill.last_step - resumed, 0)
            passed = end.passed and bool(outcome.checksum) and repeated <= 10 and not kill.where.startswith("status")
            text = f"resumed from {resumed}, {repeated} repeated, {end.outcome}"
            yield Result("kill", f"run {run}: {kill.moment}", kill.where, text, passed, repeated)
        shutil.rmtree(sandbox.folder)


class _Plan(NamedTuple):
    moment: str
    starts: list[int]


def _start_and_wait(
    sandbox: Sandbox, moment: str, reference: Reference, rng: random.Random, last: int = STEPS - 1
) -> tuple[_Plan, subprocess.Popen]:
    """Starts the run and waits until the moment of the fault, at step `last` at the latest.

    Does not wait if the moment is an operation: the process then kills itself.
    """
    starts, step = sandbox.start_steps(), sandbox.last_step()
    if moment == "operation":
        remaining = 1 if step == 0 else max(1 - step / STEPS, 0.1)
        number = rng.randint(1, max(int(reference.operations * remaining), 1))
        faults = {"FAULT_FOLDER": str(sandbox.folder), "FAULT_OPERATION": str(number)}
        process = sandbox.start(faults=faults)
        return _Plan(f"operation {number}", starts), process
    if moment == "compile":
        sandbox.uncache_step()
    target = rng.randint(min(step + 1, last), last)
    wait = rng.random() * (rng.random() * 0.03 if moment == "save" else reference.seconds.get(moment, 0.1))
    wait = rng.random() * 0.01 if moment == "steps" else wait
    process = sandbox.start()
    while process.poll() is None:
        stage, step = sandbox.stage(len(starts)), sandbox.last_step()
        started = len(sandbox.start_steps()) > len(starts)
        if moment in ("steps", "save"):
            if started and step >= target and moment in (stage, "steps"):
                break
            if stage == "end":
                break
        elif stage == moment or (started and moment in ("prepare", "compile") and stage != "start"):
            break
        time.sleep(0.001)
    end = time.monotonic() + wait
    while time.monotonic() < end and (moment not in ("prepare", "compile") or sandbox.stage(len(starts)) == moment):
        time.sleep(0.001)
    return _Plan(f"{moment} + {wait:.3f} s" + (f", {target}" if moment in ("steps", "save") else ""), starts), process


def signals(
    make: Callable[[], Sandbox], reference: Reference, rng: random.Random, moments: Sequence[str],
    names: Sequence[str] = ("SIGTERM",),
) -> Iterator[Result]:  # fmt: skip
    """Sends a signal at each of the moments; the run must end with a message, and the same command must resume it."""
    for number, moment in enumerate(moments):
        name = names[number % len(names)]
        sandbox = make()
        if moment == "start":  # Python has started and imports libraries
            process = sandbox.start()
            wait = 0.5 + rng.random()
            time.sleep(wait)
            plan = _Plan(f"start + {wait:.3f} s", [])
        else:
            plan, process = _start_and_wait(sandbox, moment, reference, rng, STEPS // 2)  # early enough to be stopped
        where = f"{sandbox.stage(0)} at step {sandbox.last_step()}"
        process.send_signal(getattr(signal, name))
        outcome = finish(process)
        saved = sandbox.last_step()
        resumed = None if outcome.status == 0 else sandbox.resume()
        result = check_outcome(name, plan.moment, where, outcome, reference.checksum, resumed)
        if resumed and saved and outcome.message:  # no step is repeated
            result = result._replace(passed=result.passed and sandbox.start_steps()[-1] == saved)
        yield result
        shutil.rmtree(sandbox.folder)


# Disks


def full_disks(make: Callable[[], Sandbox], reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Runs with a limit on the size of files, or on a small disk, and resumes with more space on the same disk."""
    for number in range(count):
        sandbox = make()
        if number % 2 == 0 or not can_mount():
            limit = int(10 ** rng.uniform(2, 5))
            outcome = sandbox.run(faults={"FAULT_FILE_BYTES": str(limit)})
            where = f"step {sandbox.start_steps()[-1:]}"
            resumed = sandbox.resume() if outcome.status else None
            yield check_outcome("disk", f"files of {limit:,} bytes", where, outcome, reference.checksum, resumed)
        else:
            pages = rng.randint(1, 400)
            with mounted(sandbox.folder, pages * 4096):
                outcome = sandbox.run()
                where = f"at step {sandbox.last_step()}"
                subprocess.run(["mount", "-o", "remount,size=64m", str(sandbox.folder)], check=True)
                resumed = sandbox.resume() if outcome.status else None
            yield check_outcome("disk", f"disk of {pages * 4} KiB", where, outcome, reference.checksum, resumed)
        shutil.rmtree(sandbox.folder)


def can_mount() -> bool:
    """Returns whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            bool(shutil.which("mount"))
            and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode == 0
            and subprocess.run(["umount", folder]).returncode == 0
        )


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """Mounts a file system in memory of `size` bytes at a directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a directory read-only: by a mount if this process may mount (permissions do not bind root), else by mode.

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
        raise PermissionError("permissions do not bind root, and root may not mount here")
    else:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)


def read_only_folders(partial: Sandbox, folder: Path, reference: Reference) -> Iterator[Result]:
    """Runs with a read-only work directory, then with a read-only cache, each for a new run and for a partial one."""
    for name in ("run", "cache"):
        for is_new in (True, False):
            sandbox = Sandbox(folder, partial.text) if is_new else partial.copy_to(folder)
            directory = sandbox.folder / name
            directory.mkdir(exist_ok=True)
            with read_only(directory):
                outcome = sandbox.run_in_process()
            resumed = sandbox.run_in_process() if outcome.status else None
            moment = f"{name}/ of a {'new' if is_new else 'partial'} run"
            yield check_outcome("readonly", moment, "", outcome, reference.checksum, resumed)
            shutil.rmtree(folder)


# Damaged files


def damage(partial: Sandbox, folder: Path, reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Damages the files of a partial run one at a time: flips a bit, truncates the file or removes it.

    A run that ends with a message must end with the same parameters once the file is restored.
    """
    sandbox = partial.copy_to(folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    order = [*files] * (count // len(files)) + rng.sample(files, count % len(files))
    for file in order:
        shutil.rmtree(folder)
        sandbox = partial.copy_to(folder)
        path = folder / file
        content = bytearray(path.read_bytes())
        kind = rng.choice(("flip", "flip", "flip", "truncate", "remove"))
        offset = rng.randrange(len(content)) if content else 0
        if kind == "flip" and content:
            content[offset] ^= 1 << (bit := rng.randrange(8))
            moment = f"bit {bit} of byte {offset} flipped"
            path.write_bytes(content)
        elif kind == "remove" or not content:
            moment = "removed"
            path.rename(folder / "removed")
        else:
            moment = f"truncated to {offset} bytes"
            path.write_bytes(content[:offset])
        outcome, resumed = sandbox.run_in_process(), None
        if outcome.status:
            shutil.rmtree(folder)
            resumed = partial.copy_to(folder).run_in_process()
        yield check_outcome("damage", moment, _short(file), outcome, reference.checksum, resumed)
    shutil.rmtree(folder, ignore_errors=True)


def _short(file: Path) -> str:
    return "/".join(part if len(part) < 28 else f"{part[:8]}…" for part in file.parts)


# NaN, clocks, directories


def nan_params(
    partial: Sandbox, folder: Path, reference: Reference, rng: random.Random, count: int
) -> Iterator[Result]:
    """Sets the parameters to NaN at a random step; the run must stop and keep the last checkpoint before it."""
    for _ in range(count):
        sandbox = partial.copy_to(folder)
        step = rng.randrange(partial.last_step() + 1, STEPS)
        outcome = sandbox.run(faults={"FAULT_NAN_STEP": str(step)})
        kept = sorted(int(entry.name) for entry in (sandbox.workdir / "checkpoints").iterdir())
        resumed = sandbox.run_in_process()
        where = f"checkpoints {kept}"
        result = check_outcome("nan", f"after step {step}", where, outcome, reference.checksum, resumed)
        reported = f"the checkpoint of step {kept[-1]} is kept" in outcome.message and kept[-1] <= step
        yield result._replace(passed=result.passed and reported)
        shutil.rmtree(folder)


YEAR = 365.25 * 86400  # seconds


def clocks(make: Callable[[], Sandbox], reference: Reference, rng: random.Random, count: int) -> Iterator[Result]:
    """Changes the clock and the modification times of all files each time that the run is stopped and resumed."""
    for _ in range(count):
        sandbox, moments = make(), []
        for years in rng.sample((-50, -1, 1, 70), 2):
            process = sandbox.start(faults={"FAULT_CLOCK": str(years * YEAR)})
            starts, target = len(sandbox.start_steps()), rng.randint(sandbox.last_step() + 1, sandbox.last_step() + 20)
            while process.poll() is None and not (
                len(sandbox.start_steps()) > starts and sandbox.last_step() >= target
            ):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            outcome = finish(process)
            moments.append(f"{years:+d} years to step {sandbox.last_step()}")
            if outcome.status and not outcome.message:
                break
            # In reverse order, so that older checkpoints get later times.
            for number, path in enumerate(sorted(sandbox.folder.rglob("*"), reverse=True)):
                os.utime(path, (modified := (time.time() + rng.choice((-50, 70)) * YEAR + number), modified))
        else:
            outcome = sandbox.resume()
        yield check_outcome("clock", ", ".join(moments), "", outcome, reference.checksum, None)
        shutil.rmtree(sandbox.folder)


def folders(partial: Sandbox, folder: Path, reference: Reference) -> Iterator[Result]:
    """Starts a run with relative paths and resumes it from another working directory."""
    sandbox = Sandbox(folder, partial.text)
    shutil.copy(partial.text, folder / "text.txt")
    original = os.getcwd()
    relative = {"text": "text.txt", "cache": "cache"}
    try:
        os.chdir(folder)
        first = sandbox.run_in_process(arguments=sandbox.arguments("train.steps=20", workdir="run", **relative))
        assert first.status == 0, first.errors
        os.chdir("/")
        cases = {
            "the same relative path": sandbox.arguments(**relative),
            "the absolute path": sandbox.arguments(text=str(folder / "text.txt")),
            "config.json": ["train", f"--config={sandbox.workdir / 'config.json'}", f"--workdir={sandbox.workdir}",
                            f"--config.train.steps={STEPS}"],
        }  # fmt: skip
        for name, arguments in cases.items():
            kept = folder.with_name("kept")
            shutil.copytree(sandbox.workdir, kept)
            outcome = sandbox.run_in_process(arguments=arguments)
            shutil.rmtree(sandbox.workdir)
            kept.rename(sandbox.workdir)
            yield check_outcome("folder", name, "started elsewhere", outcome, reference.checksum, None)
    finally:
        os.chdir(original)
        shutil.rmtree(folder)


# Several processes

HEARTBEAT = 3  # seconds


def launch(sandbox: Sandbox, count: int, *extra: str) -> subprocess.Popen:
    """Starts the run as `count` processes; wait for them with `finish`."""
    arguments = sandbox.arguments("train.compute_dtype=float32", f"mesh.heartbeat_seconds={HEARTBEAT}", *extra)
    command = [sys.executable, str(ROOT / "scripts" / "launch_local"), str(count), *arguments]
    return start_process(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


def pid_of(sandbox: Sandbox, index: int) -> int:
    """Returns the process id of process `index` of a run. Raises ProcessLookupError."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            if f"--workdir={sandbox.workdir}" in words and f"--config.mesh.process_id={index}" in words:
                return int(entry.name)
    raise ProcessLookupError(f"process {index} of {sandbox.workdir}")


def lost_processes(make: Callable[[], Sandbox], rng: random.Random, counts: Sequence[int] = (2, 4)) -> Iterator[Result]:
    """Kills or suspends one of several processes; each of the others must name it in its message within a minute.

    The same command must then end with the parameters of an undisturbed run of as many processes. On half as many,
    which sum in another order, the last loss must be equal up to rounding.
    """
    for count in counts:
        whole = make()
        undisturbed = finish(launch(whole, count))
        assert undisturbed.status == 0, undisturbed.errors
        for number, resume_count in ((signal.SIGKILL, count), (signal.SIGSTOP, count // 2)):
            sandbox = make()
            lost, first_step, process = rng.randrange(count), rng.randrange(5, 35), launch(sandbox, count)
            while process.poll() is None and sandbox.last_step() < first_step:
                time.sleep(0.02)
            step, pid, start = sandbox.last_step(), pid_of(sandbox, lost), time.monotonic()
            os.kill(pid, number)
            others = [pid_of(sandbox, index) for index in range(count) if index != lost]
            while any(Path(f"/proc/{other}").exists() for other in others) and time.monotonic() - start < 120:
                time.sleep(0.02)
            seconds = time.monotonic() - start
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)
            outcome = finish(process)
            reports = outcome.errors.count(f"jaxlm: process {lost} has not responded for {HEARTBEAT} s")
            noise = any(word in outcome.errors for word in ("Traceback", "Check failure"))
            resumed = finish(launch(sandbox, resume_count))
            if resume_count == count:
                same = resumed.checksum == undisturbed.checksum
                end = "same parameters" if same else f"OTHER {resumed.checksum[:12]}"
            else:
                difference = abs(last_loss(sandbox) - last_loss(whole))
                same, end = difference < 2e-5, f"last loss differs by {difference:.1e}"
            passed = resumed.status == 0 and same and reports == count - 1 and not noise and seconds < 60
            how = "killed" if number == signal.SIGKILL else "suspended"
            end = end if resumed.status == 0 else resumed.errors[-300:]
            text = f"reported by {reports} others in {seconds:.0f} s; resumed on {resume_count}: {end}"
            yield Result("processes", f"{lost} of {count} {how}", f"step {step}", text, passed)
            shutil.rmtree(sandbox.folder)
        shutil.rmtree(whole.folder)


def last_loss(sandbox: Sandbox) -> float:
    """Returns the training loss of the last logged step."""
    return next(line["loss"] for line in reversed(sandbox.metrics()) if line["kind"] == "train")


# Leaks


class Sample(NamedTuple):
    """Resources of a process at a step."""

    step: int
    memory: int  # bytes, resident
    files: int  # open file descriptors
    threads: int


def sample(pid: int, step: int) -> Sample:
    """Returns the resources that a process uses now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(step, int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]))


def leaks(sandbox: Sandbox, steps: int, every: int, saving: int) -> tuple[list[Sample], Outcome]:
    """Trains for many small updates, saving and evaluating every `saving` steps; returns a sample per `every` steps.

    Each value is the minimum since the sample before, because a save in progress uses files and threads of its own.
    """
    settings = (f"train.steps={steps}", f"checkpoint.every={saving}", f"evaluation.every={saving}", "logging.every=10")
    process = sandbox.start(*settings)
    samples: list[Sample] = []
    recent: list[Sample] = []
    while process.poll() is None:
        step = sandbox.last_step()
        with contextlib.suppress(OSError, KeyError):  # the process has just ended
            recent += [sample(process.pid, step)] if step else []
        if recent and step >= (samples[-1].step if samples else 0) + every:
            samples.append(Sample(step, *(min(column) for column in zip(*(one[1:] for one in recent), strict=True))))
            recent = []
        time.sleep(0.02)
    return samples, finish(process)


def check_leaks(samples: list[Sample], outcome: Outcome, memory: int = 20 * 2**20) -> Result:
    """Returns whether usage stays flat after the first tenth: at most `memory` bytes, 2 files and 2 threads more."""
    later = [one for one in samples if one.step > samples[-1].step / 10]
    # Compares the minima of the first and the last quarter, since leaked resources are never released.
    first, last = later[: max(len(later) // 4, 1)], later[-max(len(later) // 4, 1) :]
    names = ("memory", "files", "threads")
    before, after = ({name: min(getattr(one, name) for one in part) for name in names} for part in (first, last))
    flat = after["memory"] - before["memory"] < memory and all(after[name] <= before[name] + 2 for name in names[1:])
    growth = f"memory {(after['memory'] - before['memory']) / 2**20:+.1f} MiB, " + ", ".join(
        f"{name} {before[name]} -> {after[name]}" for name in names[1:]
    )
    where = f"steps {first[0].step:,} to {last[-1].step:,}"
    return Result("leak", f"{len(samples)} samples", where, growth, flat and outcome.status == 0)
