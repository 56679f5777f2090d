import gzip
import os

import pytest

from jaxlm.errors import UserError
from jaxlm.text.sources import source_fingerprint
from tests.text.reading import data_settings, read, write


def test_a_folder_is_its_files_with_known_endings_in_order_without_hidden_ones(tmp_path):
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden.txt", ".git/x.txt", "picture.png", "c.TXT.gz"):
        write(tmp_path / name, gzip.compress(b"c") if name.endswith("gz") else name)
    (tmp_path / "link").symlink_to(tmp_path)  # a cycle
    assert read(tmp_path)[0] == ["a.txt", "a/z.txt", "b.txt", "c"]


def test_data_format_selects_files_with_unknown_endings(tmp_path):
    write(tmp_path / "train.en", "english")
    with pytest.raises(UserError, match=r"train.en: the file name .*--config.data.format=text"):
        read(tmp_path / "train.en")
    with pytest.raises(UserError, match=r"none of the 1 files in the folder .* has a known ending"):
        read(tmp_path)
    assert read(tmp_path, format="text")[0] == ["english"]
    write(tmp_path / "a.txt", "known")
    assert read(tmp_path, format="text")[0] == ["known"]


def test_a_double_star_matches_folders(tmp_path):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/f.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "*.txt")[0] == ["a.txt"]
    assert read(tmp_path / "**/*.txt")[0] == ["a.txt", "b/c.txt", "b/d/e.txt"]
    assert read(write(tmp_path / "odd[1].txt", "odd"))[0] == ["odd"]


def test_missing_and_empty_paths_are_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in (
        (tmp_path / "none.txt", "there is no file or folder .*none.txt"),
        (tmp_path / "pipe.txt", "pipe.txt is a pipe or a device, which cannot be read twice; write its content"),
        (tmp_path / "*.md", r"no file matches .*\*.md"),
        (tmp_path / "empty", "the folder .*empty has no files"),
    ):
        with pytest.raises(UserError, match=message):
            read(path)
        with pytest.raises(UserError, match=message):
            source_fingerprint(str(path), data_settings())


def test_the_fingerprint_depends_on_names_sizes_and_times_but_not_on_the_folder(tmp_path):
    write(tmp_path / "a" / "x.txt", "one")
    os.utime(tmp_path / "a" / "x.txt", (1, 1))
    first = source_fingerprint(str(tmp_path / "a"), data_settings())
    (tmp_path / "a").rename(tmp_path / "b")
    assert source_fingerprint(str(tmp_path / "b" / "*.txt"), data_settings()) == first
    os.utime(tmp_path / "b" / "x.txt", (2, 2))
    assert source_fingerprint(str(tmp_path / "b"), data_settings()) != first
    os.utime(tmp_path / "b" / "x.txt", (1, 1))
    assert source_fingerprint(str(tmp_path / "b"), data_settings()) == first
    write(tmp_path / "b" / "y.txt", "two")
    assert source_fingerprint(str(tmp_path / "b"), data_settings()) != first
