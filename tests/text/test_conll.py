"""Sentences of tagged words in CoNLL columns and in lists of JSON Lines and Parquet."""

import gzip
import json

import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.text.conll import place_of_word, read_sentences

WNUT = "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\nBlackburn\tI-PER\n"
CONLL_2003 = (
    "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n"
)
SENTENCES = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter", "Blackburn"], ["B-PER", "I-PER"])]


def read(path, content=None, labelled=True, **task):
    """Returns the rows of a file with this content."""
    config = default_config()
    config.task.update(task)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_sentences(path, "task.train", config, labelled)


def pairs(rows):
    return [(row.values["words"], row.values["tags"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.conll", WNUT),
        ("eng.train", CONLL_2003),
        ("a.txt", WNUT.replace("\t", " ")),
        ("a.tsv", WNUT),
        ("a.conll", WNUT.rstrip("\n")),
        ("a.conll", "\ufeff" + WNUT),
        ("a.conll", WNUT.replace("\n", "\r\n")),
        ("a.conll", WNUT.replace("\n\n", "\n\t\n")),
        ("a.conll", WNUT.replace("\n\n", "\n  \t \r\n\n\n")),
        ("a.conll", "\n\n" + WNUT + "\n \n"),
        ("a.conll", WNUT.replace("\n\n", "\n-DOCSTART-\tO\n")),
        ("a.conll", CONLL_2003.replace("-DOCSTART- -X- -X- O\n\n", "-DOCSTART- -X- O O\n")),
        ("a.conll", CONLL_2003.replace(" ", "  ").replace("O\n", "O \n")),
        ("a.conllu", "# sent_id = 1\n# text = EU rejects\n" + WNUT.replace("\n\n", "\n\n# sent_id = 2\n")),
        ("a.conllu", "# text = EU\n" + WNUT.replace("\n\n", "\n\n# Peter\n")),
        ("a.conll", WNUT.replace("EU\t", "EU ").replace("rejects\t", "rejects \t").replace("Peter\t", "Peter ")),
        ("a.gz", gzip.compress(WNUT.encode(), mtime=0)),
    ],
)
def test_every_layout_of_columns_gives_the_same_sentences(tmp_path, name, content):
    rows = read(tmp_path / name, content)
    assert pairs(rows) == SENTENCES
    if isinstance(content, str):
        lines = content.lstrip("\ufeff").split("\n")
        for row in rows:
            for number, word in enumerate(row.values["words"]):
                assert lines[int(place_of_word(row, number).rpartition(" ")[2]) - 1].split()[0] == word


def test_columns_are_chosen_by_number(tmp_path):
    for tags in ("2", "-2"):
        assert pairs(read(tmp_path / "a", CONLL_2003, tags=tags))[0] == (["EU", "rejects"], ["B-NP", "B-VP"])
    assert pairs(read(tmp_path / "a", CONLL_2003, words="1", tags="3"))[0][0] == ["NNP", "VBZ"]


def test_white_space_in_a_word_belongs_to_it_and_a_word_may_begin_with_a_hash(tmp_path):
    content = "#\tO\n#tag\tO\n\u00a0\tO\n0800 123\tB-NUMBER\n\u3000\tO\n\tO\n\n#\tO\n"
    assert pairs(read(tmp_path / "a", content)) == [
        (["#", "#tag", "\u00a0", "0800 123", "\u3000", ""], ["O", "O", "O", "B-NUMBER", "O", "O"]), (["#"], ["O"])
    ]  # fmt: skip


def test_words_without_tags_can_only_be_predicted(tmp_path):
    assert pairs(read(tmp_path / "a", "EU\nrejects\n\nPeter\n", labelled=False)) == [
        (["EU", "rejects"], None), (["Peter"], None)
    ]  # fmt: skip
    assert pairs(read(tmp_path / "a", WNUT, labelled=False)) == SENTENCES
    assert pairs(read(tmp_path / "a", WNUT, labelled=False, tags="3"))[1] == (["Peter", "Blackburn"], None)
    with pytest.raises(UserError, match=r"a, line 1: one column, but words and their tags are needed"):
        read(tmp_path / "a", "EU\nrejects\n")


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("", {}, r"a\.conll contains no sentences; set task\.train"),
        ("\n \n\t\n", {}, r"contains no sentences"),
        ("-DOCSTART- O\n\n", {}, r"contains no sentences"),
        ("EU\tO\nrejects\nthe\tO\n", {}, r"1 line does not have 2 columns, as most do \(line 2\); give each word one"),
        ("EU\nrejects\tO\nthe\tO\n", {}, r"1 line does not have 2 columns, as most do \(line 1\)"),
        ("EU\tO\nrejects\t\nthe\tO\nx\tO\ny\t \n", {}, r"2 lines do not have 2 columns, as most do \(lines 2, 5\)"),
        ("EU O\nNew York O\nthe O\n", {}, r"1 line does not have 2 columns, as most do \(line 2\)"),
        (
            WNUT,
            {"tags": "2"},
            r"task\.tags=2: the lines of .*a\.conll have 2 columns; give a number from 0 to 1, or fr",
        ),
        (WNUT, {"tags": "-3"}, r"task\.tags=-3: the lines"),
        (WNUT, {"tags": "ner"}, r"task\.tags=ner: the lines"),
        (WNUT, {"words": "９"}, r"task\.words=９: the lines"),
        (WNUT, {"words": "1"}, r"words and tags are in the same column 1"),
        (b"EU\tO\n\xff\tO\n", {}, r"a\.conll, line 2, byte 5: 0xff is not valid utf-8; set data\.encoding"),
    ],
)
def test_bad_columns_are_refused_in_one_sentence(tmp_path, content, task, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.conll", content, **task)


def test_sentences_with_bad_lines_are_skipped_and_named_if_wanted(tmp_path, caplog):
    rows = read(tmp_path / "a", "EU\tO\nrejects\n\nPeter\tO\n", bad_rows="skip")
    assert pairs(rows) == [(["Peter"], ["O"])]
    assert "1 line does not have 2 columns, as most do (line 2); their sentences are skipped" in caplog.text


def test_what_is_no_file_and_csv_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing does not exist: set task\.train"):
        read(tmp_path / "missing")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"a\.csv: tagged words are read from CoNLL columns, JSON Lines and Parquet"):
        read(tmp_path / "a.csv", "word,tag\nEU,O\n")


def records(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_lists_in_json_lines_and_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"words": words, "tags": tags} for words, tags in SENTENCES]
    assert pairs(read(tmp_path / "a.jsonl", records(*rows))) == SENTENCES
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert pairs(read(tmp_path / "a.parquet")) == SENTENCES
    named = records({"tokens": ["EU", "rejects"], "ner_tags": [1, 0]})
    found = read(tmp_path / "b.jsonl", named, words="tokens", tags="ner_tags", labels=("O", "B-ORG"))
    assert pairs(found) == SENTENCES[:1]
    assert pairs(read(tmp_path / "c.jsonl", records({"words": ["EU"]}, {"words": []}), labelled=False)) == [
        (["EU"], None), ([], None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, {}, r"line 2: 2 words in words, but 1 tag in tags; give each word one"),
        ({"words": ["a", "b"], "tags": []}, {}, r"line 2: 2 words in words, but 0 tags"),
        ({"words": "a b", "tags": ["O", "O"]}, {}, r"line 2: words='a b': expected a list of texts"),
        ({"words": ["a", 3], "tags": ["O", "O"]}, {}, r"line 2: words=.*expected a list of texts"),
        ({"words": ["a"], "tags": "O"}, {}, r"line 2: tags='O': expected a list of tags"),
        ({"words": ["a"], "tags": None}, {}, r"line 2: tags=None: expected a list of tags"),
        ({"words": ["a"], "tags": [None]}, {}, r"line 2: tags=\[None\]: expected a list of tags"),
        ({"words": ["a"]}, {}, r"line 2: there is no column tags; the columns are words: set task\.tags"),
        ({"words": ["a"], "tags": [2]}, {}, r"line 2, word 1: the tag 2 in tags is not a name; set task\.labels"),
        ({"words": ["a"], "tags": [2]}, {"labels": ("O", "B")}, r"line 2, word 1: the tag 2 in tags is not one of 0 t"),
        ({"words": ["a"], "tags": [-1]}, {"labels": ("O", "B")}, r"the tag -1 in tags is not one of 0 to 1"),
        ({"words": ["a"], "tags": [True]}, {"labels": ("O", "B")}, r"the tag True in tags is not a name"),
        ({"words": ["a", "\ud800"], "tags": ["O", "O"]}, {}, r"line 2: '.ud800' contains half of a surrogate pair"),
        ({"words": ["a"], "tags": ["B-\ud800"]}, {}, r"line 2: 'B-.ud800' contains half of a surrogate pair"),
        ({"words": ["a"], "tags": ["O"]}, {"tags": "words"}, r"task\.words=words and task\.tags=words: must be diff"),
    ],
)
def test_bad_lists_are_refused_in_one_sentence(tmp_path, row, task, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jsonl", records({"words": ["x"], "tags": ["O"]}, row), **task)
