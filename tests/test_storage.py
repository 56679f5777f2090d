import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import storage
from jaxlm.errors import UserError

ROOT = Path(__file__).parents[1]


# Reading


def test_text_is_read_without_its_byte_order_mark_and_with_its_line_ends(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffé\r\nb\n".encode())
    assert storage.read_text(file) == "é\r\nb\n"
    assert storage.read_bytes(file) == "\ufeffé\r\nb\n".encode()


def test_text_that_is_not_utf_8_is_rejected_with_its_line_and_byte(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("é\n".encode() + b"caf\xe9\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2, byte 6: not UTF-8"):
        storage.read_text(file)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=rf"^cannot read {tmp_path}/none: it does not exist$"):
        storage.read_bytes(tmp_path / "none")
    with pytest.raises(UserError, match=rf"^cannot read {tmp_path}: Is a directory$"):
        storage.read_text(tmp_path)


def test_json_is_read_if_it_holds_the_expected_kind_of_value(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes('\ufeff{"a": "é"}'.encode())
    assert storage.read_json(file) == {"a": "é"}
    file.write_text("[1, 2]")
    assert storage.read_json(file, list) == [1, 2]
    with pytest.raises(UserError, match=r"a\.json does not hold a JSON object: fetch it again$"):
        storage.read_json(file)
    file.write_text("{}")
    with pytest.raises(UserError, match=r"a\.json does not hold a JSON array: remove it$"):
        storage.read_json(file, list, remedy="remove it")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b'{"a": "caf\xe9"}', b"\x00\x01"])
def test_json_that_is_damaged_is_rejected_with_the_remedy(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON \(.+\): copy it again$"):
        storage.read_json(file, remedy="copy it again")


def test_json_with_half_of_a_surrogate_pair_is_rejected():
    with pytest.raises(ValueError, match=r"it contains \\ud83d, half of a surrogate pair"):
        storage.parse_json(rb'{"a": ["\ud83d"]}')
    assert storage.parse_json(rb'{"a": ["\ud83d\ude00", "\\ud83d"]}') == {"a": ["\U0001f600", "\\ud83d"]}


def test_a_reason_is_one_short_line():
    assert storage.reason(FileNotFoundError(2, "No such file or directory")) == "it does not exist"
    assert storage.reason(OSError(28, "No space left on device")) == "No space left on device"
    assert storage.reason(ValueError("two\n  lines")) == "two lines"
    assert storage.reason(ValueError()) == "ValueError"
    assert len(storage.reason(ValueError("long " * 1000))) == 300


# Writing


def test_a_written_file_replaces_the_old_one_and_leaves_no_temporary_file(tmp_path):
    file = tmp_path / "a.txt"
    storage.write_text(file, "first\r\n")
    storage.write_text(file, "é\n")
    assert file.read_bytes() == "é\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")])
def test_a_write_that_fails_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path, error):
    file = tmp_path / "a.txt"
    storage.write_text(file, "old")

    def write_half():
        with storage.atomic_path(file) as temporary:
            temporary.write_text("half")
            assert file.read_text() == "old"
            raise error

    kind = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind) as raised:
        write_half()
    if kind is UserError:
        assert str(raised.value).startswith(f"cannot write {file}: No space left on device; ")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    file, flushed = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append((os.fstat(handle).st_size, file.exists())))
    storage.write_text(file, "12345")
    assert flushed == [(5, False)]
    storage.sync_directory(tmp_path)
    assert len(flushed) == 2


# Locks


HOLD = """
import sys, time
from pathlib import Path
from jaxlm import storage
with storage.lock(Path(sys.argv[1]), remove=True):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(file, seconds):
    """Starts a process that holds the lock file for `seconds`, and returns it once it does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    command = [sys.executable, "-c", HOLD, str(file), str(seconds)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_that_another_process_holds_is_reported_and_freed_when_the_process_is_killed(tmp_path):
    file = tmp_path / "lock"
    process = hold(file, 60)
    with pytest.raises(UserError, match=r"^it is in use$"), storage.lock(file, busy="it is in use"):
        pass
    process.kill()
    process.communicate()
    with storage.lock(file, busy="it is in use"):
        pass
    assert file.exists()


def test_a_process_waits_for_a_lock_and_says_so(tmp_path, capsys):
    file = tmp_path / "lock"
    process = hold(file, 0.5)
    with storage.lock(file, waiting="waiting for another process", remove=True):
        assert file.exists()
        with pytest.raises(UserError, match="in use"), storage.lock(file, busy="in use", remove=True):
            pass
        assert file.exists()
    assert capsys.readouterr().err == "waiting for another process\n"
    assert process.wait() == 0
    assert list(tmp_path.iterdir()) == []
    process.communicate()
    with storage.lock(file, waiting="waiting for another process"):
        pass
    assert capsys.readouterr().err == ""


CONTEND = """
import sys, time
from pathlib import Path
from jaxlm import storage
folder = Path(sys.argv[1])
for _ in range(40):
    with storage.lock(folder / "lock", remove=True):
        (folder / "inside").mkdir()  # fails if another process is inside
        time.sleep(0.001)
        (folder / "inside").rmdir()
"""


def test_a_lock_file_that_is_removed_each_time_still_admits_one_process_at_a_time(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    command = [sys.executable, "-c", CONTEND, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 100 deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested more than 100 deep"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        ('{"a": 1}'.encode("utf-16"), "can't decode byte 0xff"),
    ],
)
def test_what_readers_of_json_understand_differently_is_rejected(tmp_path, content, why):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        storage.read_json(file)
    assert str(caught.value).startswith(f"{file} is not valid JSON (")
    assert why in str(caught.value)
    assert str(caught.value).endswith(": fetch it again")


def test_carriage_returns_and_a_byte_order_mark_are_part_of_json_files(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a":\r1,\r\n"b": 2}\r')
    assert storage.read_json(tmp_path / "a.json") == {"a": 1, "b": 2}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is a pipe, a socket or a device"):
        storage.read_json(tmp_path / "pipe")


def test_a_path_with_a_nul_character_is_named():
    with pytest.raises(UserError, match="null"):
        storage.read_bytes(Path("a\0b"))


# Nothing that belongs to the user


def test_a_file_of_the_user_beside_a_written_one_is_left_alone(tmp_path):
    file, mine = tmp_path / "a.txt", tmp_path / "a.txt.tmp"
    mine.write_text("mine")
    storage.write_text(file, "new")
    assert mine.read_text() == "mine"
    assert storage.beside(file, "tmp") == tmp_path / ".a.txt.jaxlm-tmp"
    storage.beside(file, "tmp").write_text("left by a kill")
    storage.write_text(file, "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "a.txt.tmp"]


def test_a_directory_may_be_written_into_if_it_is_new_empty_or_own(tmp_path):
    assert storage.foreign_entries(tmp_path / "new", lambda _: False) == []
    assert storage.foreign_entries(tmp_path, lambda _: False) == []
    (tmp_path / "b").touch()
    (tmp_path / ".a").touch()
    assert storage.foreign_entries(tmp_path, lambda _: False) == [".a", "b"]
    assert storage.foreign_entries(tmp_path, lambda directory: directory == tmp_path) == []


@pytest.mark.parametrize("path", ["", " ", "\t"])
def test_an_empty_path_is_refused_by_the_name_of_its_option(path):
    with pytest.raises(UserError, match=r"^--to= is empty; name a path \(\. is the current folder\)$"):
        storage.check_named("--to", path)
    storage.check_named("--to", ".")


def test_a_path_may_begin_with_the_home_directory_and_must_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/a", Path("~/a"), tmp_path / "a"):
        assert storage.local_path("--to", path) == tmp_path / "a"
    for wrong, words in (("", "--to= is empty"), (" ", "--to= is empty"), (None, "the to must be a path or a str")):
        with pytest.raises(UserError, match=words):
            storage.local_path("--to", wrong)
