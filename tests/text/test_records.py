import gzip

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from jaxlm.errors import UserError
from jaxlm.text.filters import Tally
from jaxlm.text.records import RecordSettings, read_records

FILES = {
    "a.txt": (b"\xef\xbb\xbfone\r\n\r\nthree  \nfour", ["one", "", "three  ", "four"]),
    "b.jsonl": (b'{"text": "one\\ntwo"}\n\n{"text": ""}\n{"text": null}\n', ["one\ntwo", "", ""]),
    "c.csv": (b'id,text\n1,"a, b"\n2,\n3,"x ""y"""\n', ["a, b", "", 'x "y"']),
    "d.tsv": (b"\xef\xbb\xbftext\tid\n\"one\t1\n\t2\nthree\"\t3\n", ['"one', "", 'three"']),
}  # fmt: skip


def read(path, tally=None, **more):
    return list(read_records(str(path), RecordSettings(**more), tally or Tally()))


@pytest.mark.parametrize("name", FILES)
def test_each_record_has_a_text_even_if_it_is_empty(tmp_path, name):
    content, texts = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == texts
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert read(tmp_path / f"{name}.gz") == texts


def test_parquet_and_folders_and_other_fields(tmp_path):
    table = pyarrow.table({"body": ["one", None, "", "four"], "n": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", field="body") == ["one", "", "", "four"]
    (tmp_path / "a.jsonl").write_text('{"body": "first"}\n')
    assert read(tmp_path, field="body") == ["first", "one", "", "", "four"]


@settings(max_examples=50, deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8), max_size=6))
def test_each_line_is_a_record(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    lines = [line.removeprefix("\ufeff") if not number else line for number, line in enumerate(lines)]
    assert read(path) == lines


def test_control_characters_are_dropped_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b\nc\n")
    tally = Tally()
    assert read(tmp_path / "a.txt", tally) == ["ab", "c"]
    assert tally.dropped["control characters"] == 1
    assert tally.documents == 2


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", b"good\ncaf\xe9 bad\n", "a.txt, line 2, byte 8: .* set --encoding"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl, line 1: there is no field text; set --field .*one of: body"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: the field text holds int"),
        ("a.csv", b"id,text\n1,x\n2\n", "a.csv, line 3: the row has 1 fields, but the header has 2"),
        ("a.csv", b"id,text\n1,x\n2,\"y\n", "a.csv, line 3: not a valid CSV"),
        ("a.tsv", b"id\ttext\n1\tx\ty\n", "a.tsv, line 2: the row has 3 fields"),
        ("a.tsv", b"", "a.tsv, line 1: there is no field text"),
        ("a.parquet", b"PAR1 no", "a.parquet is not a complete Parquet file"),
        ("a.doc", b"x", "set the format, for example --format=text"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_reported_with_its_line(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=error):
        read(tmp_path / name)
