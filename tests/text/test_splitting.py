import json

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.text import formats
from tests.text.reading import read, write


def test_a_text_file_is_one_document_by_default(tmp_path):
    documents, tally = read(write(tmp_path / "a.txt", "één\ntwee\n\ndrie\n"))
    assert documents == ["één\ntwee\n\ndrie"]
    assert (tally.documents, tally.bytes, tally.dropped, tally.cut) == (1, 16, {}, 0)


def test_paragraphs_end_at_lines_that_are_empty_or_white_space(tmp_path):
    file = write(tmp_path / "a.txt", "\n \n  one\n  two\n \t \n\nthree\nfour\n\n\nfive")
    documents, tally = read(file, document="paragraph")
    assert documents == ["  one\n  two", "three\nfour", "five"]
    assert tally.dropped == {}


def test_empty_lines_are_dropped_and_counted(tmp_path):
    documents, tally = read(write(tmp_path / "a.txt", "one\n\n  \ntwo\n"), document="line")
    assert documents == ["one", "two"]
    assert tally.dropped == {"empty documents": 2}


@given(
    text=st.text(st.sampled_from("ab \n\r\té🦙\u2028\x85\0"), max_size=40),
    block=st.integers(1, 7),
    limit=st.integers(1, 30),
)
@settings(deadline=None)
def test_documents_do_not_depend_on_the_block_size(tmp_path_factory, text, block, limit):
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


def test_long_documents_are_cut_at_white_space_without_loss(tmp_path):
    file = write(tmp_path / "a.txt", "x y " * 3000)
    documents, tally = read(file, max_document_characters=1000)
    assert "".join(documents) == "x y " * 3000
    assert len(documents) == 12
    assert all(document[0] == "x" for document in documents)
    assert tally.cut == 1
    assert read(file, max_document_characters=12_000)[1].cut == 0


def test_a_document_without_white_space_is_cut_at_the_limit(tmp_path):
    documents, tally = read(write(tmp_path / "a.txt", "é" * 25), max_document_characters=10)
    assert documents == ["é" * 10, "é" * 10, "é" * 5]
    assert tally.cut == 1


def test_a_cut_document_is_counted_once(tmp_path):
    file = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("a" * 25, "b" * 5)))
    documents, tally = read(file, max_document_characters=10)
    assert documents == ["a" * 10, "a" * 10, "a" * 5, "b" * 5]
    assert tally.cut == 1
