import json
import re
from pathlib import Path

from jaxlm.text import filters
from tests.text.reading import read, write


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


def test_lone_surrogates_are_dropped(tmp_path):
    documents, tally = read(write(tmp_path / "a.jsonl", r'{"text": "a\ud800b"}'))
    assert documents == ["ab"]
    assert tally.dropped == {"control characters": 1}


def test_what_was_dropped_agrees_with_its_number():
    root = Path(filters.__file__).parent.parent
    source = "".join(path.read_text() for path in [*root.glob("text/*.py"), *root.glob("data/*.py")])
    reasons = set(re.findall(r'\.drop\(\s*"([^"]+)"', source))
    assert "empty documents" in reasons
    assert reasons == filters._SINGULAR.keys()
    assert filters.dropped(1, "rows with another number of fields") == "1 row with another number of fields"
    assert filters.dropped(1200, "duplicates") == "1,200 duplicates"
