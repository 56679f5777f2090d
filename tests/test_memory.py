import os
import subprocess
import sys

import pytest

from jaxlm import memory

# The second start prints what it was given; a third would never end.
SCRIPT = """
import os, sys
from jaxlm import memory
print("start", flush=True)
memory.restart_with_kept_memory()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], os.getpid() == int(sys.stdin.readline() or 0))
"""
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")


def run(tunables=None):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": tunables} if tunables is not None else {}
    call = [sys.executable, "-c", SCRIPT, "a b", "--config.data.path=x,y"]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    out, _ = process.communicate(f"{process.pid}\n")
    assert process.returncode == 0
    return out.splitlines()


@ON_LINUX
def test_the_program_starts_once_more_as_the_same_process_with_its_arguments():
    assert run() == ["start", "start", f"{memory.TUNABLES} ['a b', '--config.data.path=x,y'] True"]


@ON_LINUX
def test_what_the_user_has_set_stays():
    assert run("") == ["start", " ['a b', '--config.data.path=x,y'] True"]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_happens_on_other_systems(monkeypatch, platform):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    memory.restart_with_kept_memory()


def test_a_start_that_the_system_refuses_changes_nothing(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")

    def refuse(*_):
        raise OSError("no such file")

    monkeypatch.setattr(os, "execve", refuse)
    memory.restart_with_kept_memory()
