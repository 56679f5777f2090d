import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import zstandard

from jaxlm.errors import UserError
from jaxlm.text import formats
from tests.text.reading import read, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_are_equivalent(tmp_path, end):
    file = write(tmp_path / "a.txt", end.join(["one", "two", "", "three"]))
    assert read(file, document="line")[0] == ["one", "two", "three"]
    assert read(file, document="paragraph")[0] == ["one\ntwo", "three"]
    assert read(file)[0] == ["one\ntwo\n\nthree"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_other_separators_do_not_end_a_line_or_record(tmp_path, character):
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
def test_byte_order_marks_are_stripped_in_every_format(tmp_path, name, content, compression):
    data = b"\xef\xbb\xbf" + content.encode()
    data = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[compression]
    assert read(write(tmp_path / (name + compression), data))[0] == ["word"]


def test_an_undecodable_byte_is_reported_with_file_line_and_position(tmp_path):
    file = write(tmp_path / "a.txt", b"good\ncaf\xe9 bad\n")
    with pytest.raises(UserError, match=rf"{file}, line 2, byte 8: 0xe9 is not valid utf-8"):
        read(file)
    assert read(file, encoding="latin-1")[0] == ["good\ncafé bad"]
    file = write(tmp_path / "a.jsonl", b'{"text": "x"}\r\n{"text": "\xff"}')
    with pytest.raises(UserError, match=r"a.jsonl, line 2, byte 25: 0xff"):
        read(file)
    with pytest.raises(UserError, match=r"cut.txt, line 1, byte 1: 0xe2"):
        read(write(tmp_path / "cut.txt", b"a\xe2\x82"))


def test_the_position_of_an_undecodable_byte_is_right_at_block_boundaries(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "é\r\né".encode() + b"\xff")
    for size in range(1, 9):
        monkeypatch.setattr(formats, "BLOCK_BYTES", size)
        with pytest.raises(UserError, match="line 2, byte 6: 0xff"):
            read(file)


@pytest.mark.parametrize("encoding", ["base64", "zlib", "hex", "rot13", "undefined", "no\0name", "a" * 5000])
def test_an_encoding_that_is_none_of_text_is_rejected(tmp_path, encoding):
    file = tmp_path / "a.txt"
    file.write_text("text")
    with pytest.raises(UserError, match="Python has no text encoding of this name") as caught:
        read(file, encoding=encoding)
    assert len(str(caught.value)) < 250


def test_other_encodings_are_read_and_unknown_ones_are_rejected(tmp_path):
    file = write(tmp_path / "a.txt", "één".encode("utf-16"))
    assert read(file, encoding="utf-16")[0] == ["één"]
    with pytest.raises(UserError, match=r"data.encoding=utf-99"):
        read(file, encoding="utf-99")


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
def test_a_very_long_line_is_read_with_bounded_memory(tmp_path, ending):
    content = b"x y " * 10_000_000
    pack = {".txt": bytes, ".txt.gz": lambda data: gzip.compress(data, 1), ".txt.zst": zstandard.compress}[ending]
    file = write(tmp_path / f"a{ending}", pack(content))
    program = f"""
        import resource
        from jaxlm.config import default_config
        from jaxlm.text.filters import Tally
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


def test_json_lines_are_read_by_field_and_empty_lines_are_skipped(tmp_path):
    file = write(
        tmp_path / "a.jsonl", '{"text": "one\\r\\ntwo", "id": 1}\n\n{"text": ""}\n{"text": null}\n{"text": "x"}'
    )
    documents, tally = read(file)
    assert documents == ["one\ntwo", "x"]
    assert tally.dropped == {"empty documents": 2}


def test_a_byte_order_mark_inside_a_record_is_stripped(tmp_path):
    assert read(write(tmp_path / "a.jsonl", r'{"text": "\ufeffone"}'))[0] == ["one"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "line 2: not valid JSON"),
        ('["x"]', "line 2: not a JSON object; each line of JSON Lines must hold one"),
        ('{"body": "x", "id": 1}', "line 2: there is no field text; set data.field .*one of: body, id"),
        ('{"text": 5}', "line 2: the field text holds int, not text"),
        ("[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_an_invalid_json_record_is_reported_with_file_and_line(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl", '{"text": "x"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"{file}, {message}"):
        read(file)


def test_csv_fields_may_contain_line_ends_commas_and_quotes(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\r\n1,"one\r\ntwo, ""three"""\r\n\r\n2,four\r\n')
    documents, tally = read(file)
    assert documents == ['one\ntwo, "three"', "four"]
    assert tally.dropped == {}


def test_an_unclosed_quote_in_csv_is_reported_with_its_line(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\n1,a\n2,"b\n3,c\n')
    with pytest.raises(UserError, match=r"a.csv, line 3: not a valid CSV row .*data.format=tsv"):
        read(file)


def test_a_csv_field_may_exceed_the_default_limit_of_python(tmp_path):
    assert read(write(tmp_path / "a.csv", "text\n" + "a" * 200_000))[0] == ["a" * 200_000]


def test_tsv_has_no_quoting_and_rows_of_another_length_are_counted(tmp_path):
    file = write(tmp_path / "a.tsv", 'id\ttext\n1\t"open\n2\tclose"\n3\n4\tx\ty\n5\tlast')
    documents, tally = read(file)
    assert documents == ['"open', 'close"', "last"]
    assert tally.dropped == {"rows with another number of fields": 2}
    assert tally.places == {"rows with another number of fields": [f"{file}, line 4", f"{file}, line 5"]}


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_missing_column_is_reported_with_the_existing_ones(tmp_path, kind):
    file = write(tmp_path / f"a.{kind}", {"csv": "id,body\n1,x\n", "tsv": "id\tbody\n1\tx\n"}[kind])
    with pytest.raises(UserError, match=r"line 1: there is no field text; .* one of: id, body"):
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
    with pytest.raises(UserError, match=r"a.parquet: there is no field text; .* one of: id, body, number"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 0: the field number holds int, not text"):
        read(tmp_path / "a.parquet", field="number")
    write(tmp_path / "c.parquet", (tmp_path / "a.parquet").read_bytes()[:500])
    with pytest.raises(UserError, match=r"c.parquet is not a complete Parquet file"):
        read(tmp_path / "c.parquet")


def test_invalid_utf8_in_parquet_is_reported_with_its_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 1: .*not valid UTF-8"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_may_have_several_members_and_must_be_complete(tmp_path, ending):
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    data = pack(b"one\n") + pack(b"two\n" * 5000)
    assert read(write(tmp_path / f"a.txt{ending}", data), document="line")[0] == ["one"] + ["two"] * 5000
    for damaged in (data[:-3], b"text that is not compressed"):
        file = write(tmp_path / f"b.txt{ending}", damaged)
        with pytest.raises(UserError, match=rf"{file} is truncated or damaged"):
            read(file)
