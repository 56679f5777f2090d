import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import fsspec
import pytest

from jaxlm.config import default_config
from jaxlm.data import remote_stores as remote
from jaxlm.data.prepare import prepare
from jaxlm.errors import UserError
from jaxlm.text.files import list_files, read_file, write_file
from jaxlm.text.filters import Tally
from jaxlm.text.remote import RemoteFile, is_remote
from jaxlm.text.sources import read_documents, source_fingerprint
from jaxlm.tokenizer.tokenizer import train_tokenizer

TEXTS = [f"the cat number {number} sees a river near the house of {number * 7} trees" for number in range(200)]


@pytest.fixture(autouse=True)
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    config = default_config()
    config.tokenizer.vocab_size = 60
    train_tokenizer(TEXTS, config.tokenizer, directory := tmp_path_factory.mktemp("tokenizer") / "tokenizer")
    return directory


@pytest.fixture
def config(tmp_path, tokenizer_directory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    config = default_config()
    config.data.update(path=(str(tmp_path / "text.txt"),), document="line", workers=1, shard_bytes=2000)
    config.tokenizer.path = str(tokenizer_directory)
    return config


@pytest.fixture(params=["memory", "file"])
def root(request, tmp_path):
    return "memory://bucket" if request.param == "memory" else f"file://{tmp_path}/bucket"


def put(url, content):
    write_file(RemoteFile(url), [content])


def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "here" / "jaxlm" / "stores").iterdir())


# Sources


def test_remote_files_folders_and_globs_are_read_like_local_ones(tmp_path, config, root):
    config.data.document = "file"
    for number, name in enumerate(("b.txt", "a.txt.gz", "deep/er/c.jsonl", ".hidden.txt", "deep/.no/x.txt", "x.bin")):
        content = b'{"text": "in json"}' if "json" in name else f"text {number}".encode()
        if name.endswith(".gz"):
            import gzip

            content = gzip.compress(content)
        put(f"{root}/in/{name}", content)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    for path in ("in", "in/*.txt", "in/**/*.jsonl", "in/b.txt"):
        tallies = Tally(), Tally()
        found = list(read_documents(f"{root}/{path}", config.data, tallies[0]))
        assert found == list(read_documents(str(tmp_path / path), config.data, tallies[1]))
        assert found
        assert tallies[0] == tallies[1]
        assert all(is_remote(str(file)) for file in list_files(f"{root}/{path}")[1])
    for path, message in (("no", "there is no file or folder"), ("in/*.md", "no file matches")):
        with pytest.raises(UserError, match=f"{message} {root}"):
            list(read_documents(f"{root}/{path}", config.data, Tally()))


def test_remote_parquet_is_read(config, root, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "x.parquet")
    put(f"{root}/x.parquet", (tmp_path / "x.parquet").read_bytes())
    assert list(read_documents(f"{root}/x.parquet", config.data, Tally())) == TEXTS


def test_the_fingerprint_of_remote_text_changes_with_it(config, root):
    put(f"{root}/a.txt", b"one")
    first = source_fingerprint(root, config.data)
    assert source_fingerprint(root, config.data) == first
    put(f"{root}/a.txt", b"two")
    assert source_fingerprint(root, config.data) != first


def test_bad_bytes_in_a_remote_file_are_reported_with_their_position(config, root):
    put(f"{root}/a.txt", b"good\ncaf\xe9 bad\n")
    with pytest.raises(UserError, match=rf"{root}/a.txt, line 2, byte 8: 0xe9 is not valid utf-8"):
        list(read_documents(f"{root}/a.txt", config.data, Tally()))


def test_an_unknown_or_uninstalled_file_system_is_reported(config, monkeypatch):
    with pytest.raises(UserError, match=r"nostore://x: fsspec does not support nostore://"):
        list_files("nostore://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for scheme, extra in (("gs", "gcs"), ("s3", "s3")):
        with pytest.raises(UserError, match=rf"{scheme}://b/x: the package .* pip install 'jaxlm\[{extra}\]'"):
            list_files(f"{scheme}://b/x")


# Prepared directories


def test_a_directory_in_a_remote_cache_is_copied_once_and_checked(tmp_path, config, root, capsys):
    local = prepare(config, tmp_path / "local")
    config.data.cache = f"{root}/stores/"
    first = prepare(config)
    assert first.fingerprint == local.fingerprint
    name = first.directory.name
    assert f"token store: {root}/stores/{name}\n" in capsys.readouterr().out
    assert prepare(config).directory == first.directory  # prepared on this machine, so not copied
    assert copies(tmp_path) == [name]
    shutil.rmtree(first.directory)
    copy = prepare(config)
    assert f"token store: copied {root}/stores/{name} to {copy.directory}" in capsys.readouterr().out
    assert (copy.fingerprint, copy.directory.name) == (local.fingerprint, local.fingerprint)
    assert copy.train[0].row_count(16) == local.train[0].row_count(16) > 10
    assert prepare(config).directory == copy.directory
    assert copies(tmp_path) == [copy.fingerprint]
    assert "copied" not in capsys.readouterr().out


def test_a_damaged_remote_directory_is_reported_and_leaves_no_files(tmp_path, config, root):
    url = f"{root}/out"
    shutil.rmtree(prepare(config, url).directory)
    file = RemoteFile(f"{url}/train/0/tokens-00001.bin")
    content = bytearray(read_file(file))
    content[7] ^= 1
    put(file.url, bytes(content))
    with pytest.raises(UserError, match=rf"{url} cannot be used: {url}/train/0/tokens-00001.bin .* is damaged"):
        prepare(config, url)
    assert copies(tmp_path) == []
    put(file.url, bytes(content[:-2]))
    with pytest.raises(UserError, match=rf"{url} cannot be used: .* has 1998 bytes instead of 2000"):
        prepare(config, url)


def test_a_remote_folder_with_other_files_or_settings_is_left_alone(config, root):
    url = f"{root}/out"
    put(f"{url}/thesis.txt", b"mine")
    with pytest.raises(UserError, match="out already exists and contains other files"):
        prepare(config, url)
    assert read_file(RemoteFile(f"{url}/thesis.txt")) == b"mine"
    prepare(config, f"{root}/other")
    config.data.held_out_fraction = 0.2
    with pytest.raises(UserError, match=rf"{root}/other was prepared with other settings"):
        prepare(config, f"{root}/other")


def test_an_interrupted_upload_is_incomplete_and_is_repeated(config, root, monkeypatch):
    url = f"{root}/out"
    original = remote.write_file

    def full_disk(file, pieces):
        if file.name == "prepared.json":
            raise UserError(f"{file}: cannot write it: no space")
        return original(file, pieces)

    monkeypatch.setattr(remote, "write_file", full_disk)
    with pytest.raises(UserError, match="no space"):
        prepare(config, url)
    put(f"{url}/leftover", b"")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(config.data.path[0]).parent / "here"))
    prepare(config, url)
    names = {str(file).removeprefix(f"{url}/").partition("/")[0] for file in list_files(url)[1]}
    assert names == {"prepared.json", "tokenizer", "train", "held_out"}


def _prepare_in_process(config_json, url, results):
    from jaxlm.config import config_from_dict

    results.put(prepare(config_from_dict(json.loads(config_json), "test"), url).fingerprint)


@pytest.mark.slow
def test_processes_of_one_machine_share_one_copy(tmp_path, config):
    from jaxlm.config import config_to_dict

    url = f"file://{tmp_path}/bucket/out"
    first = prepare(config, url)
    shutil.rmtree(first.directory)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = json.dumps(config_to_dict(config)), url, results
    processes = [context.Process(target=_prepare_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [first.fingerprint] * 3
    for process in processes:
        process.join()
    assert copies(tmp_path) == [first.fingerprint]
