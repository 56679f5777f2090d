import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.runtime import processes
from jaxlm.text import formats, pydocs
from jaxlm.text.pydocs import find_python_files, read_docstrings
from jaxlm.text.sources import Tally, read_documents, source_fingerprint

ROOT = Path(__file__).parents[2]


def data_settings(**changes):
    data = default_config().data
    data.workers = 1
    for name, value in changes.items():
        data[name] = value
    return data


def read(path, **changes):
    tally = Tally()
    return list(read_documents(str(path), data_settings(**changes), tally)), tally


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Text


def test_a_text_file_is_one_document_and_is_counted(tmp_path):
    documents, tally = read(write(tmp_path / "a.txt", "één\ntwee\n\ndrie\n"))
    assert documents == ["één\ntwee\n\ndrie"]
    assert (tally.documents, tally.bytes, tally.dropped, tally.cut) == (1, 16, {}, 0)


def test_paragraphs_end_at_blank_lines_with_or_without_spaces(tmp_path):
    file = write(tmp_path / "a.txt", "\n \n  one\n  two\n \t \n\nthree\nfour\n\n\nfive")
    documents, tally = read(file, document="paragraph")
    assert documents == ["  one\n  two", "three\nfour", "five"]
    assert tally.dropped == {}


def test_lines_are_documents_and_empty_ones_are_counted(tmp_path):
    documents, tally = read(write(tmp_path / "a.txt", "one\n\n  \ntwo\n"), document="line")
    assert documents == ["one", "two"]
    assert tally.dropped == {"empty documents": 2}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_ends_a_line(tmp_path, end):
    file = write(tmp_path / "a.txt", end.join(["one", "two", "", "three"]))
    assert read(file, document="line")[0] == ["one", "two", "three"]
    assert read(file, document="paragraph")[0] == ["one\ntwo", "three"]
    assert read(file)[0] == ["one\ntwo\n\nthree"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_nothing_else_ends_a_line_or_a_record(tmp_path, character):
    kept = "" if character in "\x0b\x0c\x1c\x85" else character
    file = write(tmp_path / "a.txt", f"one{character}more\ntwo")
    assert read(file, document="line")[0] == [f"one{kept}more", "two"]
    file = write(
        tmp_path / "a.jsonl", json.dumps({"text": f"one{character}more"}, ensure_ascii=False) + '\n{"text":"b"}\n'
    )
    assert read(file)[0] == [f"one{kept}more", "b"]
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        file = write(tmp_path / f"a.{kind}", f"id{separator}text\n1{separator}one{character}more\n2{separator}b\n")
        assert read(file)[0] == [f"one{kept}more", "b"]


@given(
    text=st.text(st.sampled_from("ab \n\r\té🦙\u2028\x85\0"), max_size=40),
    block=st.integers(1, 7),
    limit=st.integers(1, 30),
)
@settings(deadline=None)
def test_the_documents_do_not_depend_on_how_a_file_falls_into_blocks(tmp_path_factory, text, block, limit):
    file = write(tmp_path_factory.mktemp("blocks") / "a.txt", text)
    for document in ("file", "paragraph", "line"):
        whole, tally = read(file, document=document, max_document_characters=limit)
        before = formats.BLOCK_BYTES
        try:
            formats.BLOCK_BYTES = block
            pieces, piece_tally = read(file, document=document, max_document_characters=limit)
        finally:
            formats.BLOCK_BYTES = before
        assert (pieces, piece_tally) == (whole, tally)
        assert "".join("".join(whole).split()) == "".join(text.replace("\0", "").replace("\x85", "").split())
        assert all(len(piece) <= limit for piece in whole)


def test_control_characters_are_dropped_and_counted_in_every_format(tmp_path):
    import pyarrow
    from pyarrow import parquet

    dirty, clean = "a\0b\x1b[1m\x7f\u0090\tc", "ab[1m\tc"
    files = [
        write(tmp_path / "a.txt", dirty),
        write(tmp_path / "a.jsonl", json.dumps({"text": dirty})),
        write(tmp_path / "b.jsonl", '{"text": "' + dirty + '"}'),
        write(tmp_path / "a.csv", f"text\n{dirty}\n"),
        tmp_path / "a.parquet",
    ]
    parquet.write_table(pyarrow.table({"text": [dirty]}), files[-1])
    for file in files:
        documents, tally = read(file)
        assert documents == [clean]
        assert tally.dropped == {"control characters": 4}


def test_half_a_surrogate_pair_is_dropped_as_it_has_no_bytes(tmp_path):
    documents, tally = read(write(tmp_path / "a.jsonl", r'{"text": "a\ud800b"}'))
    assert documents == ["ab"]
    assert tally.dropped == {"control characters": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "word"),
        ("a.jsonl", '{"text": "word"}'),
        ("a.csv", "text,id\nword,1\n"),
        ("a.tsv", "text\tid\nword\t1\n"),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_byte_order_mark_is_stripped_in_every_reader(tmp_path, name, content, compression):
    data = b"\xef\xbb\xbf" + content.encode()
    data = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[compression]
    assert read(write(tmp_path / (name + compression), data))[0] == ["word"]


def test_bad_bytes_are_named_by_file_line_and_byte(tmp_path):
    file = write(tmp_path / "a.txt", b"good\ncaf\xe9 bad\n")
    with pytest.raises(UserError, match=rf"{file}, line 2, byte 8: 0xe9 is no utf-8"):
        read(file)
    assert read(file, encoding="latin-1")[0] == ["good\ncafé bad"]
    file = write(tmp_path / "a.jsonl", b'{"text": "x"}\r\n{"text": "\xff"}')
    with pytest.raises(UserError, match=r"a.jsonl, line 2, byte 25: 0xff"):
        read(file)
    with pytest.raises(UserError, match=r"cut.txt, line 1, byte 1: 0xe2"):
        read(write(tmp_path / "cut.txt", b"a\xe2\x82"))


def test_the_place_of_a_bad_byte_is_right_at_block_edges(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "é\r\né".encode() + b"\xff")
    for size in range(1, 9):
        monkeypatch.setattr(formats, "BLOCK_BYTES", size)
        with pytest.raises(UserError, match="line 2, byte 6: 0xff"):
            read(file)


def test_other_encodings_are_read_and_an_unknown_one_is_refused(tmp_path):
    file = write(tmp_path / "a.txt", "één".encode("utf-16"))
    assert read(file, encoding="utf-16")[0] == ["één"]
    with pytest.raises(UserError, match=r"data.encoding=utf-99"):
        read(file, encoding="utf-99")


# Long documents


def test_long_documents_are_cut_at_white_space_and_nothing_is_lost(tmp_path):
    file = write(tmp_path / "a.txt", "x y " * 3000)
    documents, tally = read(file, max_document_characters=1000)
    assert "".join(documents) == "x y " * 3000
    assert len(documents) == 12
    assert all(document[0] == "x" for document in documents)
    assert tally.cut == 1
    assert read(file, max_document_characters=12_000)[1].cut == 0


def test_a_long_word_is_cut_where_it_must_be(tmp_path):
    documents, tally = read(write(tmp_path / "a.txt", "é" * 25), max_document_characters=10)
    assert documents == ["é" * 10, "é" * 10, "é" * 5]
    assert tally.cut == 1


def test_one_cut_document_is_counted_once_and_the_next_is_whole(tmp_path):
    file = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("a" * 25, "b" * 5)))
    documents, tally = read(file, max_document_characters=10)
    assert documents == ["a" * 10, "a" * 10, "a" * 5, "b" * 5]
    assert tally.cut == 1


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
def test_a_very_long_line_is_read_with_bounded_memory(tmp_path, ending):
    content = b"x y " * 10_000_000
    pack = {".txt": bytes, ".txt.gz": lambda data: gzip.compress(data, 1), ".txt.zst": zstandard.compress}[ending]
    file = write(tmp_path / f"a{ending}", pack(content))
    program = f"""
        import resource
        from jaxlm.config import default_config
        from jaxlm.text.sources import Tally
        from jaxlm.text.sources import read_documents
        data = default_config().data
        data.document = "line"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tally = Tally()
        for _ in read_documents({str(file)!r}, data, tally):
            pass
        print(tally.bytes, tally.documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    size, documents, kilobytes = map(int, output.split())
    assert (size, documents) == (40_000_000, 40)
    assert kilobytes < 35_000


# Records


def test_json_lines_give_their_field_and_skip_empty_lines(tmp_path):
    file = write(
        tmp_path / "a.jsonl", '{"text": "one\\r\\ntwo", "id": 1}\n\n{"text": ""}\n{"text": null}\n{"text": "x"}'
    )
    documents, tally = read(file)
    assert documents == ["one\ntwo", "x"]
    assert tally.dropped == {"empty documents": 2}


def test_a_byte_order_mark_that_came_along_in_a_record_is_stripped(tmp_path):
    assert read(write(tmp_path / "a.jsonl", r'{"text": "\ufeffone"}'))[0] == ["one"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "line 2: no valid JSON"),
        ('["x"]', "line 2: JSON Lines has an object on each line"),
        ('{"body": "x", "id": 1}', "line 2: there is no field text; the fields are body, id: name .* data.field"),
        ('{"text": 5}', "line 2: the field text holds int, not text"),
        ("[" * 100_000, "line 2: no valid JSON"),
    ],
)
def test_a_bad_json_record_is_named_by_file_and_line(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl", '{"text": "x"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"{file}, {message}"):
        read(file)


def test_csv_fields_may_hold_line_ends_commas_and_quotes(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\r\n1,"one\r\ntwo, ""three"""\r\n\r\n2,four\r\n')
    documents, tally = read(file)
    assert documents == ['one\ntwo, "three"', "four"]
    assert tally.dropped == {}


def test_an_open_quote_in_csv_is_an_error_with_its_line(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\n1,a\n2,"b\n3,c\n')
    with pytest.raises(UserError, match=r"a.csv, line 3: no valid CSV row .*data.format=tsv"):
        read(file)


def test_a_csv_field_may_be_longer_than_pythons_limit(tmp_path):
    assert read(write(tmp_path / "a.csv", "text\n" + "a" * 200_000))[0] == ["a" * 200_000]


def test_tsv_has_no_quoting_and_bad_rows_are_counted_with_their_lines(tmp_path):
    file = write(tmp_path / "a.tsv", 'id\ttext\n1\t"open\n2\tclose"\n3\n4\tx\ty\n5\tlast')
    documents, tally = read(file)
    assert documents == ['"open', 'close"', "last"]
    assert tally.dropped == {"rows with another number of fields": 2}
    assert tally.places == {"rows with another number of fields": [f"{file}, line 4", f"{file}, line 5"]}


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_missing_column_is_an_error_that_names_the_columns(tmp_path, kind):
    file = write(tmp_path / f"a.{kind}", {"csv": "id,body\n1,x\n", "tsv": "id\tbody\n1\tx\n"}[kind])
    with pytest.raises(UserError, match="line 1: there is no field text; the fields are id, body"):
        read(file)
    assert read(file, field="body")[0] == ["x"]


def test_parquet_is_read_row_group_by_row_group(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = [f"row {number}" for number in range(1000)] + [None]
    table = pyarrow.table({"id": range(1001), "body": texts, "number": range(1001)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    write(tmp_path / "b.parquet.zst", zstandard.compress((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.parquet", "b.parquet.zst"):
        documents, tally = read(tmp_path / name, field="body")
        assert documents == texts[:-1]
        assert tally.dropped == {"empty documents": 1}
    with pytest.raises(UserError, match=r"a.parquet: there is no field text; the fields are id, body, number"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 0: the field number holds int, not text"):
        read(tmp_path / "a.parquet", field="number")
    write(tmp_path / "c.parquet", (tmp_path / "a.parquet").read_bytes()[:500])
    with pytest.raises(UserError, match=r"c.parquet is no whole Parquet file"):
        read(tmp_path / "c.parquet")


def test_bad_utf8_in_parquet_is_named_by_its_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 1: .*no valid UTF-8"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_may_have_several_members_and_must_be_whole(tmp_path, ending):
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    data = pack(b"one\n") + pack(b"two\n" * 5000)
    assert read(write(tmp_path / f"a.txt{ending}", data), document="line")[0] == ["one"] + ["two"] * 5000
    for damaged in (data[:-3], b"text that is not compressed"):
        file = write(tmp_path / f"b.txt{ending}", damaged)
        with pytest.raises(UserError, match=rf"{file} is cut short or damaged"):
            read(file)


# Paths


def test_a_folder_gives_its_known_files_in_order_without_hidden_ones(tmp_path):
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden.txt", ".git/x.txt", "picture.png", "c.TXT.gz"):
        write(tmp_path / name, gzip.compress(b"c") if name.endswith("gz") else name)
    (tmp_path / "link").symlink_to(tmp_path)  # a circle
    assert read(tmp_path)[0] == ["a.txt", "a/z.txt", "b.txt", "c"]


def test_data_format_decides_about_endings_nobody_knows(tmp_path):
    write(tmp_path / "train.en", "english")
    with pytest.raises(UserError, match=r"train.en: the ending .*--config.data.format=text"):
        read(tmp_path / "train.en")
    with pytest.raises(UserError, match=r"the folder .* has no file to read among its 1"):
        read(tmp_path)
    assert read(tmp_path, format="text")[0] == ["english"]
    write(tmp_path / "a.txt", "known")
    assert read(tmp_path, format="text")[0] == ["known"]


def test_globs_go_into_folders_with_two_stars(tmp_path):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/f.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "*.txt")[0] == ["a.txt"]
    assert read(tmp_path / "**/*.txt")[0] == ["a.txt", "b/c.txt", "b/d/e.txt"]
    assert read(write(tmp_path / "odd[1].txt", "odd"))[0] == ["odd"]


def test_what_is_missing_or_empty_is_said_in_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none.txt", "there is no file or folder .*none.txt"),
        (tmp_path / "*.txt", r"no file matches .*\*.txt"),
        (tmp_path / "empty", "the folder .*empty has no file to read"),
    ):
        with pytest.raises(UserError, match=message):
            read(path)
        with pytest.raises(UserError, match=message):
            source_fingerprint(str(path), data_settings())


def test_the_fingerprint_follows_names_sizes_and_times_and_not_the_place(tmp_path):
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


# TFDS


def test_tfds_reads_prepared_data_and_says_where_absent_data_would_be(tmp_path):
    program = f"""
        import sys
        import numpy as np
        from jaxlm.config import default_config
        from jaxlm.text.sources import Tally
        from jaxlm.text.sources import read_documents
        from jaxlm.text.sources import source_fingerprint
        from jaxlm.errors import UserError
        import tensorflow_datasets as tfds
        data = default_config().data
        examples = [(i, {{"text": f"é {{i}}", "label": i}}) for i in range(10)]
        tfds.dataset_builders.store_as_tfds_dataset(
            "toy", version="1.0.0", data_dir={str(tmp_path)!r}, disable_shuffling=True,
            split_datasets={{"train": examples, "test": examples[:1]}},
            features=tfds.features.FeaturesDict({{"text": tfds.features.Text(), "label": np.int64}}),
        )
        splits = ["toy", "toy:train[:20%]", "toy:1.0.0:test", "toy:dev"]
        for path in [f"tfds:{{name}}" for name in [*splits, "nothing", "imdb_reviews"]]:
            try:
                print(path, "=>", list(read_documents(path, data, Tally())), len(source_fingerprint(path, data)))
            except UserError as error:
                print(path, "=>", error)
        data.field = "body"
        try:
            list(read_documents("tfds:toy", data, Tally()))
        except UserError as error:
            print("field", "=>", error)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    said = dict(line.split(" => ") for line in run.stdout.splitlines() if " => " in line)
    assert said["tfds:toy"] == f"{[f'é {i}' for i in range(10)]} 32"
    assert said["tfds:toy:train[:20%]"] == "['é 0', 'é 1'] 32"
    assert said["tfds:toy:1.0.0:test"] == "['é 0'] 32"
    assert "there is no split dev; the splits are" in said["tfds:toy:dev"]
    assert f"{tmp_path}/nothing" in said["tfds:nothing"]
    assert f"{tmp_path}/imdb_reviews" in said["tfds:imdb_reviews"]
    assert "there is no field body; the fields are" in said["field"]


# Docstrings


def test_docstrings_of_modules_classes_and_functions_are_found_in_order(tmp_path):
    file = write(
        tmp_path / "a.py",
        '"""Module."""\nclass A:\n    """Class.\n\n    Args:\n      x: one.\n    """\n'
        '    async def f(self):\n        """Method."""\n'
        'def g():\n    x = """No docstring."""\ndef h():\n    "Found, as the file has others."\n',
    )
    bad = write(tmp_path / "b.py", 'def f(:\n    """x"""\n')
    warns = write(tmp_path / "c.py", '"""A bad escape: \\d."""\n')
    found = read_docstrings([str(file), str(bad), str(warns), str(tmp_path / "gone.py")])
    assert found[0] == ["Module.", "Class.\n\nArgs:\n  x: one.", "Method.", "Found, as the file has others."]
    assert found[1:] == [None, [r"A bad escape: \d."], None]


def test_pydocs_gives_one_document_a_module_without_repeats_and_imports_nothing(tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    write(packages / "b.py", 'raise SystemExit\n"""x"""\n')
    write(packages / "a" / "__init__.py", '"""About a."""\ndef f():\n    """Said twice."""\n')
    write(packages / "a" / "z.py", '"""About z."""\ndef f():\n    """Said twice."""\n')
    write(packages / "a" / "only_repeats.py", '"""Said twice."""')
    write(packages / "a" / "tests" / "t.py", '"""Not read."""')
    write(packages / "jaxlm" / "x.py", '"""Not read."""')
    (packages / "link.py").symlink_to("nowhere.py")
    write(packages / "broken.py", 'def f(:\n    """x"""\n')
    others = [entry for entry in sys.path if Path(entry).name != "site-packages"]
    monkeypatch.setattr(sys, "path", [str(packages), *others])
    monkeypatch.setattr(
        pydocs.sysconfig, "get_path", lambda name: str(write(tmp_path / "lib/s.py", '"""Std."""').parent)
    )
    assert [name for name, _ in find_python_files()] == [
        "packages/a/__init__.py", "packages/a/only_repeats.py", "packages/a/z.py", "packages/b.py",
        "packages/broken.py", "stdlib/s.py",
    ]  # fmt: skip
    documents, tally = read("pydocs")
    assert documents == ["About a.\n\nSaid twice.", "About z.", "Std."]
    assert tally.dropped == {"docstrings seen before": 2, "files that cannot be read as Python": 1}
    monkeypatch.setattr(pydocs, "DOCSTRING_FILES_AT_ONCE", 2)
    assert read("pydocs", workers=2) == (documents, tally)


def test_this_environment_has_docstrings_enough_for_a_first_run():
    files = find_python_files()
    names = [name for name, _ in files]
    assert names == sorted(names)
    assert "stdlib/json/__init__.py" in names
    assert any(name.startswith("packages/numpy/") for name in names)
    assert not any(name.startswith("stdlib/site-packages/") for name in names)


# Processes


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert list(processes.map_in_processes(abs, iter(range(-50, 0)), workers)) == list(range(50, 0, -1))


def test_one_item_starts_no_process():
    pids = processes.map_in_processes(_own_pid, [0], 4)
    assert list(pids) == [os.getpid()]


def _own_pid(_):
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_or_at_its_start_arrives_as_itself(workers):
    with pytest.raises(UserError, match=r"^no such tokenizer$"):
        list(processes.map_in_processes(abs, [1, 2], workers, _refuse, ("no such tokenizer",)))
    with pytest.raises(UserError, match=r"^bad item$"):
        list(processes.map_in_processes(_refuse, ["bad item"] * 2, workers))


def _refuse(message):
    raise UserError(message)


def test_a_worker_that_is_killed_is_reported():
    with pytest.raises(UserError, match=r"a worker process was killed.*data.workers"):
        list(processes.map_in_processes(os._exit, [1, 1], 2))
