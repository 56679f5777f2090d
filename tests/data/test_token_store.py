import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.token_store import StoreWriter, TokenStore
from jaxlm.errors import UserError

BEGIN, PAD = 3, 1


@pytest.fixture(autouse=True, scope="module")
def no_fsync():
    """Waiting for the disk would take most of the time of these tests, and none of them depends on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def write(directory, documents, vocab_size=100, shard_bytes=2**20):
    with StoreWriter(directory, vocab_size, "tokenizer", shard_bytes) as writer:
        for ids, word_starts in documents:
            writer.add(np.asarray(ids), np.asarray(word_starts, bool), 3 * len(ids))
    return writer.close()


def random_documents(lengths, vocab_size=100, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, vocab_size, n), rng.random(n) < 0.5) for n in lengths]


def expected_row(documents, index, length, prepend_begin):
    """Returns a row, built token by token from the docstring of `TokenStore.rows`."""
    stream = [
        (token, word, number, position == 0)
        for number, (ids, words) in enumerate(documents)
        for position, (token, word) in enumerate(zip(ids, words, strict=True))
    ]
    stride = length - prepend_begin
    content = stream[index * stride : (index + 1) * stride]
    row = [[int(token), number - content[0][2] + 1, bool(word)] for token, word, number, _ in content]
    row[0][2] = True
    if prepend_begin and not content[0][3]:
        row.insert(0, [BEGIN, 1, True])
    return row + [[PAD, 0, False]] * (length - len(row))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    length=st.integers(2, 40),
    prepend_begin=st.booleans(),
    shard_bytes=st.sampled_from([16, 32, 56, 1000]),
    seed=st.integers(0, 9),
)
def test_every_row_is_its_slice_with_any_length_and_any_shards(lengths, length, prepend_begin, shard_bytes, seed):
    documents = random_documents(lengths, seed=seed)
    with tempfile.TemporaryDirectory() as directory:
        store = write(Path(directory) / "store", documents, shard_bytes=shard_bytes)
        total = -(-sum(lengths) // (length - prepend_begin))
        assert store.row_count(length, prepend_begin) == sum(lengths) // (length - prepend_begin)
        indices = np.random.default_rng(seed).permutation(total)
        batch = store.rows(indices, length, prepend_begin, BEGIN, PAD)
        for position, index in enumerate(indices):
            row = expected_row(documents, index, length, prepend_begin)
            got = [batch[name][position].tolist() for name in ("tokens", "segment_ids", "word_starts")]
            assert got == [list(column) for column in zip(*row, strict=True)]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    length=st.integers(2, 40),
    prepend_begin=st.booleans(),
    shard_bytes=st.sampled_from([16, 32, 56, 1000]),
    seed=st.integers(0, 9),
)
def test_rows_of_single_documents_hold_every_token_once(lengths, length, prepend_begin, shard_bytes, seed):
    documents = random_documents(lengths, seed=seed)
    stride = length - prepend_begin
    expected = []
    for ids, words in documents:
        for first in range(0, len(ids), stride):
            piece = [[int(t), 1, bool(w)] for t, w in zip(ids[first:], words[first:], strict=True)][:stride]
            piece[0][2] = True
            begin = [[BEGIN, 1, True]] if prepend_begin and first else []
            expected.append(begin + piece + [[PAD, 0, False]] * (length - len(begin) - len(piece)))
    with tempfile.TemporaryDirectory() as directory:
        store = write(Path(directory) / "store", documents, shard_bytes=shard_bytes)
        assert store.document_row_count(length, prepend_begin) == len(expected)
        indices = np.random.default_rng(seed).permutation(len(expected))
        batch = store.document_rows(indices, length, prepend_begin, BEGIN, PAD)
        for position, index in enumerate(indices):
            got = [batch[name][position].tolist() for name in ("tokens", "segment_ids", "word_starts")]
            assert got == [list(column) for column in zip(*expected[index], strict=True)]
        with pytest.raises(ValueError, match="out of range"):
            store.document_rows(np.array([len(expected)]), length, prepend_begin, BEGIN, PAD)


def test_batches_have_the_documented_types_and_own_their_memory(tmp_path):
    batch = write(tmp_path / "s", random_documents([40])).rows(np.arange(4), 10)
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "tokens": (np.int32, (4, 10)),
        "segment_ids": (np.int32, (4, 10)),
        "word_starts": (np.bool_, (4, 10)),
    }
    assert all(array.flags.writeable and array.flags.c_contiguous for array in batch.values())
    assert write(tmp_path / "t", random_documents([40])).rows(np.arange(0), 10)["tokens"].shape == (0, 10)


def test_segments_come_from_document_offsets_not_from_ids(tmp_path):
    documents = [([BEGIN, 5, BEGIN, BEGIN], [1] * 4), ([6, 6, 6], [1] * 3)]
    batch = write(tmp_path / "s", documents).rows(np.arange(1), 7)
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2]]


def test_a_begin_token_is_prepended_only_to_rows_that_start_inside_a_document(tmp_path):
    documents = [([BEGIN, 10, 11, 12, 13, 14], [1, 1, 0, 0, 0, 0]), ([BEGIN, 20, 21], [1, 1, 0])]
    batch = write(tmp_path / "s", documents).rows(np.arange(3), 4, True, BEGIN, PAD)
    assert batch["tokens"].tolist() == [[BEGIN, 10, 11, PAD], [BEGIN, 12, 13, 14], [BEGIN, 20, 21, PAD]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    # The rest of a word that the row boundary cuts counts as a word, after the begin token too.
    assert batch["word_starts"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_counts_and_sizes(tmp_path):
    documents = random_documents([7, 300, 1], vocab_size=70_000)
    with StoreWriter(tmp_path / "s", 70_000, "abc", 2**20) as writer:
        for ids, word_starts in documents:
            writer.add(ids, word_starts, 5)
    store = TokenStore.open(tmp_path / "s")
    stream = np.concatenate([ids for ids, _ in documents])
    assert (store.tokens, store.documents, store.text_bytes, store.vocab_size) == (308, 3, 15, 70_000)
    assert store.tokenizer_fingerprint == "abc"
    assert store.counts.dtype == np.int64
    assert store.counts.tolist() == np.bincount(stream, minlength=70_000).tolist()
    assert store.rows(np.arange(1), 308)["tokens"].tolist() == [stream.tolist()]
    assert (tmp_path / "s" / "tokens-00000.bin").stat().st_size == 308 * 4


def test_long_streams_are_written_in_parts_without_a_gap(tmp_path):
    documents = random_documents([100_001] * 12)
    write(tmp_path / "s", documents, shard_bytes=800_000)
    store = TokenStore.open(tmp_path / "s", verify=True)
    stream, words = (np.concatenate(arrays) for arrays in zip(*documents, strict=True))
    batch = store.rows(np.arange(12), 100_001)
    assert (batch["tokens"].reshape(-1) == stream).all()
    words[::100_001] = True
    assert (batch["word_starts"].reshape(-1) == words).all()
    assert store.counts.tolist() == np.bincount(stream, minlength=100).tolist()


def test_no_file_is_larger_than_shard_bytes(tmp_path):
    write(tmp_path / "s", random_documents([3] * 400), shard_bytes=500)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "s").glob("*.bin")}
    assert max(sizes.values()) <= 500
    assert {"tokens-00004.bin", "word_starts-00000.bin", "documents.bin", "documents-00006.bin"} <= set(sizes)
    with pytest.raises(UserError, match=r"data\.shard_bytes=4 is too small: set it to at least 16"):
        StoreWriter(tmp_path / "t", 100, "t", 4)


def test_bit_plane_layout_is_the_documented_one(tmp_path):
    ids, words = np.arange(20), np.arange(20) % 3 == 0
    write(tmp_path / "s", [(ids, words)], shard_bytes=37)  # 18 tokens would fit, but 16 fill whole bytes
    first = np.fromfile(tmp_path / "s" / "word_starts-00000.bin", "u1")
    second = np.fromfile(tmp_path / "s" / "word_starts-00001.bin", "u1")
    assert np.unpackbits(first, bitorder="little").tolist() == words[:16].tolist()
    assert np.unpackbits(second, bitorder="little")[:4].tolist() == words[16:].tolist()
    assert np.fromfile(tmp_path / "s" / "tokens-00001.bin", "<u2").tolist() == [16, 17, 18, 19]
    assert np.fromfile(tmp_path / "s" / "documents.bin", "<i8").tolist() == [0]


def test_the_fingerprint_identifies_the_content(tmp_path):
    a, b, c = (write(tmp_path / str(i), random_documents([50], seed=seed)) for i, seed in enumerate([0, 0, 1]))
    assert a.fingerprint == b.fingerprint == TokenStore.open(tmp_path / "0").fingerprint
    assert a.fingerprint != c.fingerprint


@pytest.mark.parametrize(
    "name", ["tokens-00000.bin", "tokens-00001.bin", "word_starts-00000.bin", "documents.bin", "counts.bin"]
)
def test_a_flipped_bit_is_detected_and_the_file_is_named(tmp_path, name):
    write(tmp_path / "s", random_documents([400, 100]), shard_bytes=800)
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.*damaged"):
        TokenStore.open(tmp_path / "s")


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_or_missing_file_is_detected_and_named(tmp_path, verify):
    write(tmp_path / "s", random_documents([400]))
    path = tmp_path / "s" / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"tokens-00000\.bin .* has 798 bytes instead of 800"):
        TokenStore.open(tmp_path / "s", verify)
    path.unlink()
    with pytest.raises(UserError, match=r"tokens-00000\.bin.*missing"):
        TokenStore.open(tmp_path / "s", verify)


def test_a_damaged_or_missing_index_is_an_error(tmp_path):
    write(tmp_path / "s", random_documents([40]))
    path = tmp_path / "s" / "index.json"
    text = path.read_text()
    for damaged in (text.replace('"tokens": 40', '"tokens": 41'), text[: len(text) // 2], "[]", "{}", ""):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"index\.json .*: remove .* and prepare the data again"):
            TokenStore.open(tmp_path / "s", verify=False)
    path.write_text(json.dumps(json.loads(text) | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        TokenStore.open(tmp_path / "s")
    path.unlink()
    with pytest.raises(UserError, match="is not a token store"):
        TokenStore.open(tmp_path / "s")
    with pytest.raises(UserError, match="is not a token store"):
        TokenStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize(("ids", "where"), [([1, 110, 2], "token id 110 at token 1"), ([1, 2, -1], "-1 at token 2")])
def test_an_id_outside_the_vocabulary_is_rejected_and_no_files_are_left(tmp_path, ids, where):
    with pytest.raises(UserError, match=where):
        write(tmp_path / "s", [([4, 5], [1, 1]), (ids, [1, 1, 1])])
    assert list(tmp_path.iterdir()) == []


def test_ids_outside_the_vocabulary_are_detected_when_reading_too(tmp_path):
    write(tmp_path / "s", random_documents([40]))
    path = tmp_path / "s" / "tokens-00000.bin"
    path.write_bytes(np.full(40, 100, "<u2").tobytes())
    with pytest.raises(UserError, match="outside its vocabulary"):
        TokenStore.open(tmp_path / "s", verify=False).rows(np.arange(2), 10)


def test_a_store_appears_only_when_it_is_complete(tmp_path):
    with StoreWriter(tmp_path / "deep" / "s", 100, "t", 2**20) as writer:
        writer.add(np.arange(9), np.ones(9, bool), 9)
        assert not (tmp_path / "deep" / "s").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s"]
    assert writer.close().tokens == 9
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "t", 100, "t", 2**20) as writer:
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no documents"), StoreWriter(tmp_path / "t", 100, "t", 2**20):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_an_existing_store_is_not_overwritten(tmp_path):
    store = write(tmp_path / "s", random_documents([40]))
    with pytest.raises(UserError, match="already exists"):
        StoreWriter(tmp_path / "s", 100, "t", 2**20)
    assert TokenStore.open(tmp_path / "s").fingerprint == store.fingerprint
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", random_documents([40])).tokens == 40


def test_documents_of_the_wrong_shape_or_type_are_rejected(tmp_path):
    writer = StoreWriter(tmp_path / "s", 100, "t", 2**20)
    for ids, words in ([[], []], [[1, 2], [True]], [[0.5], [True]], [[[1]], [[True]]]):
        with pytest.raises(ValueError, match="expected int"):
            writer.add(np.asarray(ids), np.asarray(words), 1)


def test_the_writer_keeps_no_reference_to_its_arguments(tmp_path):
    ids, words = np.arange(9, dtype=np.uint16), np.ones(9, bool)
    with StoreWriter(tmp_path / "s", 100, "t", 2**20) as writer:
        writer.add(ids, words, 9)
        ids[:], words[:] = 0, False
    batch = writer.close().rows(np.arange(1), 9)
    assert batch["tokens"][0].tolist() == list(range(9))
    assert batch["word_starts"].all()


def test_rows_out_of_range_and_bad_special_tokens_are_errors(tmp_path):
    store = write(tmp_path / "s", random_documents([40]))
    for index in (-1, 4):
        with pytest.raises(ValueError, match="row indices"):
            store.rows(np.asarray([0, index]), 10)
    for bad in (-1, 100):
        with pytest.raises(UserError, match="padding token"):
            store.rows(np.arange(1), 10, pad_id=bad)
        with pytest.raises(UserError, match="begin token"):
            store.rows(np.arange(1), 10, True, bad)
    with pytest.raises(UserError, match="at least 2 tokens"):
        store.row_count(1, prepend_begin=True)
