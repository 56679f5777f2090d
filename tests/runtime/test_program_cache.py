import os
import subprocess
import sys
import time

import pytest

from jaxlm.errors import UserError
from jaxlm.runtime.program_cache import DIRECTORY, MAX_BYTES, MAX_SIZE, remove_oldest_programs, set_up_program_cache
from tests.conftest import environment

KEY = "0123456789abcdef" * 4  # as JAX names a program: NAME-KEY-cache


def write_programs(directory, sizes: dict[str, int]) -> None:
    """Writes programs, each used a minute after the one before it."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, (name, size) in enumerate(sizes.items()):
        file = directory / f"{name}-{KEY}-cache"
        file.write_bytes(bytes(size))
        seconds = time.time() - 10_000 + 60 * number
        os.utime(file, (seconds, seconds - 5_000))  # the time of use, the time of writing


def programs(directory) -> list[str]:
    return sorted(file.name.replace(f"-{KEY}", "") for file in directory.iterdir())


@pytest.mark.parametrize(
    ("bound", "left"),
    [
        (600, ["a-cache", "b-cache", "c-cache"]),
        (599, ["b-cache", "c-cache"]),
        (300, ["c-cache"]),
        (299, []),
        (0, []),
    ],
)
def test_the_programs_that_were_used_last_are_kept(tmp_path, bound, left):
    write_programs(tmp_path, {"a": 100, "b": 200, "c": 300})
    for name in ("notes.txt", "my-cache"):
        (tmp_path / name).write_bytes(bytes(5000))
    remove_oldest_programs(tmp_path, bound)
    assert programs(tmp_path) == sorted([*left, "my-cache", "notes.txt"])


def test_a_program_without_a_time_of_use_counts_as_used_when_it_was_written(tmp_path):
    write_programs(tmp_path, {"a": 100, "b": 100})
    os.utime(tmp_path / f"a-{KEY}-cache", (0, time.time()))
    remove_oldest_programs(tmp_path, 100)
    assert programs(tmp_path) == ["a-cache"]


def test_several_processes_may_remove_programs_at_once(tmp_path):
    write_programs(tmp_path, {f"p{number:04}": 10 for number in range(2000)})
    code = f"""
from pathlib import Path
from jaxlm.runtime.program_cache import remove_oldest_programs
remove_oldest_programs(Path({str(tmp_path)!r}), 5000)
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [b""] * 3
    left = programs(tmp_path)
    assert left == [f"p{number:04}-cache" for number in range(2000 - len(left), 2000)]
    assert 0 < len(left) <= 500


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The directory of the default cache, with one large program that takes no space on the disk."""
    for name in (DIRECTORY, MAX_SIZE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "jaxlm" / "compiled"
    write_programs(directory, {"old": 10, "new": 20})
    os.truncate(directory / f"new-{KEY}-cache", MAX_BYTES)
    return directory


@pytest.mark.parametrize(
    ("variable", "left"),
    [
        (None, ["new-cache"]),  # our own bound
        ("-1", ["new-cache", "old-cache"]),
        ("0", ["new-cache", "old-cache"]),  # JAX reads and writes none then
        ("15", []),
        (str(MAX_BYTES + 10), ["new-cache", "old-cache"]),
    ],
)
def test_the_default_cache_is_bounded_and_the_bound_can_be_set(home, monkeypatch, variable, left):
    if variable:
        monkeypatch.setenv(MAX_SIZE, variable)
    set_up_program_cache()
    assert os.environ[DIRECTORY] == str(home)
    assert programs(home) == left
    assert os.environ.get(MAX_SIZE) == ("0" if variable == "0" else None)  # JAX's own bound fails on these entries


def test_a_directory_of_the_user_is_bounded_only_on_request(home, tmp_path, monkeypatch):
    write_programs(tmp_path / "mine", {"a": 100, "b": 200})
    os.truncate(tmp_path / "mine" / f"b-{KEY}-cache", MAX_BYTES)
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "mine"))
    set_up_program_cache()
    assert programs(tmp_path / "mine") == ["a-cache", "b-cache"]
    monkeypatch.setenv(MAX_SIZE, str(MAX_BYTES))
    set_up_program_cache()
    assert programs(tmp_path / "mine") == ["b-cache"]
    assert programs(home) == ["new-cache", "old-cache"]


def test_a_bound_that_is_no_number_is_refused(home, monkeypatch):
    monkeypatch.setenv(MAX_SIZE, "4G")
    with pytest.raises(UserError, match=r"^JAX_COMPILATION_CACHE_MAX_SIZE=4G: expected a number of bytes, or -1 for "):
        set_up_program_cache()
