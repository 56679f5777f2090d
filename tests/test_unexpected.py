"""Every unexpected error of a command becomes one sentence, and its traceback is kept in a private file."""

import io
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxlm import cli
from jaxlm.runtime.processes import map_in_processes
from jaxlm.storage import standard_input_lines
from tests.conftest import command, environment


@pytest.fixture
def fails_with(monkeypatch, tmp_path):
    """Returns a function that makes the verb `config` call another function."""
    monkeypatch.setattr(cli, "_set_environment", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def replace(function) -> None:
        monkeypatch.setitem(sys.modules, "failing_verb", types.SimpleNamespace(main=function))
        monkeypatch.setitem(cli.VERBS, "config", ("failing_verb", ""))

    return replace


def _recurse(argv):
    return _recurse(argv)


def _out_of_memory(argv):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.")


def _memory_error(argv):
    raise MemoryError


def _index_error(argv):
    return [][argv.index("--text=a b")]


def _in_a_worker(argv):
    return list(map_in_processes(int, ["1", "no number"], 2))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_index_error, "unexpected IndexError: list index out of range"),
        (_recurse, "unexpected RecursionError"),
        (_out_of_memory, "memory ran out (RESOURCE_EXHAUSTED"),
        (_memory_error, "memory ran out (MemoryError)"),
        (_in_a_worker, "unexpected ValueError: invalid literal"),
    ],
)
def test_an_unexpected_error_is_one_sentence_and_a_private_file(fails_with, capsys, tmp_path, function, says):
    fails_with(function)
    assert cli.main(["config", "--text=a b"]) == 1
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1
    (report,) = tmp_path.glob("jaxlm-error-*.txt")
    assert str(report) in errors
    assert report.stat().st_mode & 0o777 == 0o600
    assert "command: jaxlm config '--text=a b'" in report.read_text()
    assert function.__name__ in report.read_text()
    if function is _in_a_worker:
        assert "_call" in report.read_text()  # the worker's own traceback


@pytest.mark.parametrize("argv", [["--debug", "config", "--text=a b"], ["config", "--text=a b", "--debug"]])
def test_debug_shows_the_traceback(fails_with, argv):
    fails_with(_index_error)
    with pytest.raises(IndexError):
        cli.main(argv)


def test_debug_after_two_dashes_is_a_text(fails_with):
    seen = []
    fails_with(lambda argv: seen.append(argv) or 0)
    assert cli.main(["config", "--", "--debug"]) == 0
    assert seen == [["--", "--debug"]]


def test_the_sentence_appears_although_no_report_can_be_written(fails_with, capsys, monkeypatch):
    fails_with(_index_error)
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert cli.main(["config", "--text=a b"]) == 1
    assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (IsADirectoryError(21, "Is a directory", "folder"), "folder: Is a directory"),
        (OSError(36, "File name too long", "a" * 5000), "aaa: File name too long"),
    ],
)
def test_a_path_that_the_system_rejects_is_named(fails_with, capsys, error, says):
    def fail(argv):
        raise error

    fails_with(fail)
    assert cli.main(["config"]) == 1
    errors = capsys.readouterr().err
    assert says in errors
    assert len(errors) < 1200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_device_on_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("--help"), stdout=full, stderr=subprocess.PIPE, text=True, env=environment())
    assert done.returncode == 1
    assert done.stderr == "jaxlm: output: No space left on device; fix that and run the same command again\n"


def test_arguments_that_are_not_utf8_are_rejected():
    done = subprocess.run([*command("fill-mask"), os.fsdecode(b"caf\xe9")], capture_output=True, env=environment())
    assert done.returncode == 1
    assert done.stderr.startswith(b"jaxlm: the argument 'caf\\udce9' is not valid UTF-8")


def _standard_input(monkeypatch, content: bytes) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    return list(standard_input_lines())


def test_standard_input_is_utf8_whatever_the_locale(monkeypatch):
    assert _standard_input(monkeypatch, "\ufeffcafé\r\n\nb".encode()) == ["café", "", "b"]
    with pytest.raises(cli.UserError, match="standard input, line 2, byte 3: not UTF-8"):
        _standard_input(monkeypatch, b"a\ncaf\xe9\n")


def test_a_closed_standard_input_has_no_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert list(standard_input_lines()) == []
