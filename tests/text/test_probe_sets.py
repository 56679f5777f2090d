"""Finding and reading the data of zero-shot probes."""

import json

import pytest

from jaxlm.errors import UserError
from jaxlm.text.probe_sets import Cloze, MinimalPair, StereotypePair, read_blimp, read_cloze, read_crows_pairs

PAIR = {"sentence_good": "She runs.", "sentence_bad": "She run.", "UID": "agreement", "simple_LM_method": True}
HEADER = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations\n"


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("folder", ["blimp", "blimp/data", ".", "data"])
def test_blimp_is_a_folder_of_paradigms(tmp_path, folder):
    file = write(tmp_path / folder / "b.jsonl", PAIR, PAIR)
    write(tmp_path / folder / "a.jsonl", PAIR)
    found = read_blimp(tmp_path)
    assert {name: len(pairs) for name, pairs in found.items()} == {"a": 1, "b": 2}
    assert found["b"][1] == MinimalPair(f"{file}, line 2", "She runs.", "She run.")
    assert len(read_blimp(tmp_path, rows=1)["b"]) == 1


@pytest.mark.parametrize("folder", ["crows_pairs", "crows_pairs/data", ".", "data"])
def test_crows_pairs_is_its_csv_file(tmp_path, folder):
    file = write(
        tmp_path / folder / "crows_pairs_anonymized.csv",
        HEADER, '0,"A, b.",C.,stereo,race-color,"[[\'x\']]"\n', "1,D.,E.,antistereo,gender,[]\n",
    )  # fmt: skip
    assert read_crows_pairs(tmp_path) == [
        StereotypePair(f"{file}, line 2", "A, b.", "C.", "stereo", "race-color"),
        StereotypePair(f"{file}, line 3", "D.", "E.", "antistereo", "gender"),
    ]
    assert len(read_crows_pairs(tmp_path, rows=1)) == 1


def test_cloze_puts_the_target_in_place_of_either_mask(tmp_path):
    file = write(tmp_path / "cloze.tsv", "text\ttarget\n", "In [MASK].\t Rome \n", "<mask>, \tSaint Paul\n")
    (one, other) = read_cloze(tmp_path)["cloze"]
    assert one == Cloze(f"{file}, line 2", "In Rome.", 3, 7)
    assert other.text[other.begin : other.end] == "Saint Paul"


def test_the_files_of_a_cloze_folder_keep_their_names(tmp_path):
    for name in ("b.csv", "a.tsv"):
        comma = "," if name == "b.csv" else "\t"
        write(tmp_path / "cloze" / name, f"text{comma}target\n", f"In [MASK].{comma}Rome\n")
    assert list(read_cloze(tmp_path)) == ["a", "b"]
    write(tmp_path / "cloze" / "a.jsonl", {"text": "[MASK]", "target": "x"})
    with pytest.raises(UserError, match="two files with the name a; rename one of them"):
        read_cloze(tmp_path)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (read_blimp, "--tasks=blimp: there is no {}/blimp/PARADIGM.jsonl; set --data to the folder that contains it"),
        (read_crows_pairs, "--tasks=crows_pairs: there is no {}/crows_pairs/crows_pairs_anonymized.csv; set --data"),
        (read_cloze, "--tasks=cloze: there is no {}/cloze.jsonl or {}/cloze/NAME.jsonl (.jsonl, .tsv, .csv, .parquet)"),
    ],
)
def test_missing_files_are_named(tmp_path, read, expected):
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).startswith(expected.format(tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("read", "name", "content", "expected"),
    [
        (read_blimp, "blimp/a.jsonl", '{"sentence_good": "x"}', "line 1: there is no column sentence_bad"),
        (read_blimp, "blimp/a.jsonl", '{"sentence_good": "x", "sentence_bad": 3}', "sentence_bad=3: expected text"),
        (read_blimp, "blimp/a.jsonl", '{"sentence_good": "x", "sentence_bad": " "}', "sentence_bad=' ': expected text"),
        (read_blimp, "blimp/a.jsonl", "x\n", "line 1: not valid JSON"),
        (read_blimp, "blimp/a.jsonl", "", "contains no rows"),
        (read_blimp, "blimp/a.jsonl", b'{"sentence_good": "\xff"}', "is not valid utf-8; convert it to UTF-8"),
        (read_crows_pairs, "crows_pairs_anonymized.csv", HEADER + "0,A,B,both,age,[]\n", "stereo_antistereo='both'"),
        (read_crows_pairs, "crows_pairs_anonymized.csv", HEADER + "0,A,B,stereo,,[]\n", "line 2: bias_type=''"),
        (
            read_crows_pairs,
            "crows_pairs_anonymized.csv",
            HEADER + "0,A,B\n",
            "does not have 6 columns (line 2); fix the file",
        ),
        (read_crows_pairs, "crows_pairs_anonymized.csv", "a,b\n0,1\n", "there is no column sent_more"),
        (read_cloze, "cloze.csv", "text,target\nno mask,x\n", "line 2: the text has 0 masks, but one is expected"),
        (read_cloze, "cloze.csv", "text,target\n[MASK] <mask>,x\n", "line 2: the text has 2 masks"),
        (read_cloze, "cloze.csv", "text,target\n[MASK],\n", "line 2: target='': expected text"),
        (read_cloze, "cloze.csv", 'text,target\n"[MASK],x\n', "not a valid CSV row"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, read, name, content, expected):
    write(tmp_path / name, content) if isinstance(content, str) else None
    if isinstance(content, bytes):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert expected in str(error.value)
    assert "task." not in str(error.value)
    assert "data." not in str(error.value)
