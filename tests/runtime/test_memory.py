import os
import subprocess
import sys

import pytest

from jaxlm.runtime import memory

# The second start prints what it received; if it started again, it would never end.
SCRIPT = """
import os, sys
from jaxlm.runtime import memory
print("start", flush=True)
memory.restart_with_malloc_settings()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], os.getpid() == int(sys.stdin.readline() or 0))
"""
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tests glibc")


def run(tunables=None):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": tunables} if tunables is not None else {}
    call = [sys.executable, "-c", SCRIPT, "a b", "--config.data.path=x,y"]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    out, _ = process.communicate(f"{process.pid}\n")
    assert process.returncode == 0
    return out.splitlines()


@ON_LINUX
def test_the_program_restarts_once_in_the_same_process_with_its_arguments():
    assert run() == ["start", "start", f"{memory.TUNABLES} ['a b', '--config.data.path=x,y'] True"]


@ON_LINUX
def test_the_user_s_tunables_are_kept():
    assert run("") == ["start", " ['a b', '--config.data.path=x,y'] True"]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_do_not_restart(monkeypatch, platform):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    memory.restart_with_malloc_settings()


def test_a_failed_restart_changes_nothing(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")

    def refuse(*_):
        raise OSError("no such file")

    monkeypatch.setattr(os, "execve", refuse)
    memory.restart_with_malloc_settings()


@ON_LINUX
@pytest.mark.parametrize("tunables", ["ours", "none"])
def test_freed_memory_is_returned_to_the_system(tunables):
    # `end` lies above the freed memory, so that the allocator cannot trim the heap by itself.
    script = """
import resource
from jaxlm.runtime import memory
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
pieces = [bytearray(b"x" * 2**20) for _ in range(300)]
end = bytearray(b"x" * 2**16)
held = resident()
del pieces
kept = resident()
memory.give_back()
print(held, kept, resident())
"""
    environment = os.environ | {"GLIBC_TUNABLES": memory.TUNABLES if tunables == "ours" else ""}
    out = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    held, kept, left = map(int, out.stdout.split())
    if tunables == "ours":
        assert held - kept < 100
        assert kept - left > 200
    else:  # glibc's default: freed memory is returned at once
        assert held - kept > 200
