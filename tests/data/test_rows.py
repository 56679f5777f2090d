import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import Phase
from jaxlm.data.permutation import permute
from jaxlm.data.prefetch import measure_input_rate, train_batches
from jaxlm.data.rows import TrainRows, held_out_batches
from jaxlm.data.token_store import StoreWriter
from jaxlm.errors import UserError

ROOT = Path(__file__).parents[2]


def make_store(directory, tokens, vocab_size=20_000, tokenizer="t", first_id=0):
    """Documents of 7 tokens; the ids count up, so that a token tells its place in the stream."""
    with StoreWriter(directory, vocab_size, tokenizer, 2**20) as writer:
        for begin in range(0, tokens, 7):
            ids = first_id + np.arange(begin, min(begin + 7, tokens))
            writer.add(ids, ids % 2 == 0, len(ids))
    return writer.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "s", 1000)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores")
    return [make_store(directory / str(i), n, first_id=1000 * i) for i, n in enumerate([1000, 300, 57])]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_permutation_never_changes():
    # A run resumed under a newer version must see the same rows: never edit these numbers.
    assert permute(np.arange(10), 10, 0).tolist() == [7, 4, 5, 0, 9, 8, 1, 2, 3, 6]
    assert permute(np.arange(10), 10, (0, 1, 2)).tolist() == [0, 8, 7, 9, 3, 2, 5, 6, 4, 1]
    assert permute(np.asarray([0, 1, 123_456_789_012]), 10**12 + 39, (7, 0, 3)).tolist() == [
        315640034099,
        530766002001,
        942101665702,
    ]


@settings(deadline=None)
@given(size=st.integers(1, 3000), key=st.tuples(st.integers(), st.integers(0, 2**64)))
def test_permute_is_a_permutation_of_every_size(size, key):
    image = permute(np.arange(size), size, key)
    assert image.dtype == np.int64
    assert (np.sort(image) == np.arange(size)).all()


@settings(deadline=None)
@given(size=st.integers(2**31, 2**62), key=st.integers())
def test_permute_stays_in_range_and_keeps_apart_at_large_sizes(size, key):
    index = np.concatenate([np.arange(500), size - 1 - np.arange(500)])
    image = permute(index, size, key)
    assert image.min() >= 0
    assert image.max() < size
    assert len(set(image.tolist())) == 1000


@pytest.mark.parametrize("size", [4, 7, 12])
def test_small_permutations_are_evenly_spread_over_keys(size):
    keys = 3000
    images = np.stack([permute(np.arange(size), size, (5, key)) for key in range(keys)])
    cells, expected = size * (size - 1), keys / size / (size - 1)
    for a, b in [(0, 1), (2, 0), (0, size - 1)]:  # chi-squared over the pairs of values at two places
        counts = np.bincount(images[:, a] * size + images[:, b], minlength=size * size)
        excess = ((counts - expected) ** 2 / expected).sum() - size * expected - (cells - 1)
        assert excess < 4 * (2 * cells) ** 0.5


def test_permutations_of_two_keys_and_of_neighbours_are_unrelated():
    long = [permute(np.arange(10_000), 10_000, (5, key)) for key in range(4)]
    for a, b in [(long[0], long[1]), (long[2], np.arange(10_000)), (long[3][1:], long[3][:-1])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


@settings(deadline=None)
@given(length=st.integers(3, 1000), batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_row_comes_exactly_once_an_epoch(store, length, batch_size, seed):
    rows = TrainRows([store], None, [Phase(None, length, batch_size)], seed)
    size = 1000 // length
    steps = -(-3 * size // batch_size)
    order = np.concatenate([rows.rows_of_step(step)[1] for step in range(steps)])
    epochs = order[: 3 * size].reshape(3, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    if size > 20:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


@pytest.mark.parametrize("batch_size", [1, 5, 11, 300])
def test_without_weights_all_rows_of_all_stores_are_one_epoch(stores, batch_size):
    rows = TrainRows(stores, None, [Phase(None, 10, batch_size)], 1)
    size = 100 + 30 + 5
    steps = [rows.rows_of_step(step) for step in range(-(-2 * size // batch_size))]
    pairs = np.concatenate([source * 1000 + row for source, row in steps])[: 2 * size].reshape(2, size)
    every = [source * 1000 + row for source, count in enumerate([100, 30, 5]) for row in range(count)]
    assert (np.sort(pairs, axis=1) == every).all()


@pytest.mark.parametrize("weights", [(9, 1, 1), (0.7, 0.2, 0.1), (1, 2**0.5, 0.01)])
def test_weights_give_each_store_its_share_in_every_stretch_and_its_own_epochs(stores, weights):
    batch_size = 32
    rows = TrainRows(stores, weights, [Phase(None, 10, batch_size)], 1)
    source, row = (np.concatenate(a) for a in zip(*(rows.rows_of_step(s) for s in range(100)), strict=True))
    shares = np.asarray(weights) / sum(weights)
    for number, count in enumerate([100, 30, 5]):
        seen = np.cumsum(source == number)
        ideal = shares[number] * np.arange(1, len(source) + 1)
        # Interleaved, not in blocks: never far from the share (1,024 slots round it by up to half a slot).
        assert np.abs(seen - ideal).max() < 2 + len(source) * 0.5 / 1024
        mine = row[source == number]
        epochs = mine[: len(mine) // count * count].reshape(-1, count)
        assert (np.sort(epochs, axis=1) == np.arange(count)).all()


def test_weights_of_small_whole_numbers_are_met_exactly(stores):
    rows = TrainRows(stores[:2], (9, 1), [Phase(None, 10, 10)], 0)
    for step in range(20):
        assert np.bincount(rows.rows_of_step(step)[0]).tolist() == [9, 1]


def test_other_weights_are_rounded_to_1024_slots_by_the_largest_remainder(stores):
    rows = TrainRows(stores, (2**0.5, 1, 0.01), [Phase(None, 10, 1024)], 0)
    assert np.bincount(rows.rows_of_step(3)[0]).tolist() == [597, 423, 4]  # of 597.37, 422.41 and 4.22


@pytest.mark.parametrize("weights", [(1, 0, 1), (1, -1, 1), (1, float("nan"), 1), (1, float("inf"), 1)])
def test_weights_that_are_not_positive_are_refused(stores, weights):
    with pytest.raises(UserError, match="every weight must be above 0"):
        TrainRows(stores, weights, [Phase(None, 10, 4)], 0)


def test_a_weight_too_small_for_the_pattern_is_refused(stores):
    with pytest.raises(UserError, match="1e-05 is less than one row in 1024"):
        TrainRows(stores, (1, 1, 1e-5), [Phase(None, 10, 4)], 0)
    with pytest.raises(UserError, match="2 entries for 3 paths"):
        TrainRows(stores, (1, 1), [Phase(None, 10, 4)], 0)


def test_a_store_without_a_whole_row_is_refused_and_what_fits_is_said(stores):
    for weights in (None, (1, 1, 1)):
        with pytest.raises(UserError, match=r"holds 57 tokens.*one row of 64.*at most 57"):
            TrainRows(stores, weights, [Phase(None, 64, 4)], 0)
    TrainRows(stores, None, [Phase(None, 57, 4)], 0)
    with pytest.raises(UserError, match="at most 58"):
        TrainRows(stores, None, [Phase(3, 8, 4), Phase(None, 64, 4)], 0, prepend_begin=True)
    TrainRows(stores, None, [Phase(None, 58, 4)], 0, prepend_begin=True)


def test_stores_of_two_tokenizers_are_refused(tmp_path, store):
    other = make_store(tmp_path / "s", 100, tokenizer="other")
    with pytest.raises(UserError, match="different tokenizers"):
        TrainRows([store, other], None, [Phase(None, 10, 4)], 0)
    with pytest.raises(UserError, match="there are no data to train on"):
        TrainRows([], None, [Phase(None, 10, 4)], 0)


PHASES = [Phase(5, 10, 30), Phase(4, 10, 7), Phase(6, 25, 16), Phase(None, 10, 30)]


def test_phases_of_one_length_go_on_with_the_epoch_and_others_begin_a_new_order(store):
    rows = TrainRows([store], None, PHASES, 0)
    order = np.concatenate([rows.rows_of_step(step)[1] for step in range(9)])
    assert len(order) == 5 * 30 + 4 * 7
    assert sorted(order[:100]) == list(range(100))
    assert len(set(order[100:])) == 78
    longer = np.concatenate([rows.rows_of_step(step)[1] for step in range(9, 15)])
    assert sorted(longer[:40]) == sorted(longer[40:80]) == list(range(40))
    again = np.concatenate([rows.rows_of_step(step)[1] for step in range(15, 20)])
    assert sorted(again[:100]) == list(range(100))
    assert again[:100].tolist() != order[:100].tolist()
    assert [rows.batch(step)["tokens"].shape for step in (0, 5, 9, 15, 10**6)] == [
        (30, 10), (7, 10), (16, 25), (30, 10), (30, 10)]  # fmt: skip


def test_epochs_count_rows_over_all_phases(store):
    rows = TrainRows([store], None, PHASES, 0)
    assert rows.tokens_per_epoch == 1000
    assert TrainRows([store], None, [Phase(None, 300, 4)], 0).tokens_per_epoch == 900
    spent = 5 * 30 * 10 + 4 * 7 * 10 + 6 * 16 * 25  # tokens of the phases before the last
    assert rows.steps_for(None, spent + 300) == rows.steps_for(None, spent + 1) == 16
    assert rows.steps_for(None, spent + 301) == 17
    assert rows.steps_for(10, None) == 15 + -(-(10_000 - spent) // 300)
    assert rows.steps_for(1, None) == rows.steps_for(None, 1000)


def test_the_seed_and_the_step_alone_decide_the_rows(stores):
    def order(seed, step):
        return TrainRows(stores, (3, 2, 1), [Phase(None, 10, 16)], seed).rows_of_step(step)[1].tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3) != order(0, 4)
    assert order(-1, 0) != order(1, 0)


@pytest.mark.parametrize("weights", [None, (3, 2, 1)])
@pytest.mark.parametrize("parts", [1, 2, 3, 6, 24])
def test_the_union_of_rows_is_the_same_for_any_number_of_processes(stores, weights, parts):
    rows = TrainRows(stores, weights, [Phase(None, 10, 24)], 0, prepend_begin=True, begin_id=5)
    for step in (0, 7, 1_000_000):
        share = 24 // parts
        pieces = [rows.batch(step, part * share, (part + 1) * share) for part in range(parts)]
        union = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        assert same(union, rows.batch(step))


def test_batches_hold_the_rows_that_they_name(stores):
    rows = TrainRows(stores, (1, 1, 1), [Phase(None, 10, 12)], 3)
    source, row = rows.rows_of_step(4)
    batch = rows.batch(4)
    for place in range(12):
        assert (batch["tokens"][place] == source[place] * 1000 + row[place] * 10 + np.arange(10)).all()
    with pytest.raises(ValueError, match="rows 4 to 13 of a batch of 12"):
        rows.batch(4, 4, 13)


def test_rows_are_filled_as_packing_says(tmp_path):
    documents = [np.arange(n) + 100 * i for i, n in enumerate((7, 12, 3, 18))]
    with StoreWriter(tmp_path / "store", 1000, "t", 2**20) as writer:
        for ids in documents:
            writer.add(ids, np.ones(len(ids), bool), len(ids))
    store = writer.close()
    phase = [Phase(None, 10, 4)]
    packed, across, padded = (
        TrainRows([store], None, phase, 0, pad_id=999, packing=packing) for packing in ("documents", "across", "none")
    )
    assert same({"tokens": packed.batch(0)["tokens"]}, {"tokens": across.batch(0)["tokens"]})
    assert packed.batch(0)["segment_ids"].max() > 1
    assert (across.batch(0)["segment_ids"] == 1).all()
    assert padded.tokens_per_epoch == 6 * 10  # of 7, 12, 3 and 18 tokens: 1, 2, 1 and 2 rows
    rows = [row for step in range(3) for row in padded.batch(step)["tokens"].tolist()][:6]
    rows = {tuple(token for token in row if token != 999) for row in rows}
    assert rows == {tuple(ids[first : first + 10].tolist()) for ids in documents for first in range(0, len(ids), 10)}
    for batch in (padded.batch(step) for step in range(3)):
        assert ((batch["tokens"] == 999) == (batch["segment_ids"] == 0)).all()
        assert len({*batch["segment_ids"].ravel()} - {0}) == 1


@pytest.mark.slow
def test_starting_at_a_step_equals_iterating_to_it_through_tf_data(stores):
    rows = TrainRows(stores, (2, 1, 1), PHASES, 0)
    whole = list(train_batches(rows, 0, 20))
    assert len(whole) == 20
    assert all(same(batch, rows.batch(step)) for step, batch in enumerate(whole))
    for start in (3, 5, 12, 19):
        resumed = list(train_batches(rows, start, 20, prefetch=2))
        assert len(resumed) == 20 - start
        assert all(same(a, b) for a, b in zip(resumed, whole[start:], strict=True))
    (late,) = train_batches(rows, 1_000_000, 1_000_001)
    assert same(late, rows.batch(1_000_000))
    assert list(train_batches(rows, 7, 7)) == []
    assert {name: array.dtype for name, array in late.items()} == {
        "tokens": np.int32, "segment_ids": np.int32, "word_starts": np.bool_}  # fmt: skip


@pytest.mark.slow
def test_processes_take_their_share_in_every_phase(store):
    rows = TrainRows([store], None, [Phase(2, 10, 6), Phase(None, 20, 4)], 0)
    halves = [list(train_batches(rows, 0, 4, part, 2)) for part in range(2)]
    for step in range(4):
        union = {name: np.concatenate([halves[0][step][name], halves[1][step][name]]) for name in halves[0][step]}
        assert same(union, rows.batch(step))
    with pytest.raises(UserError, match=r"a batch of 6 rows cannot be divided into 4 equal parts"):
        train_batches(rows, 0, 4, 0, 4)


def test_an_error_in_gathering_comes_out_as_it_is(store, monkeypatch):
    rows = TrainRows([store], None, [Phase(None, 10, 4)], 0)

    def broken(self, step, first, last):
        if step == 2:
            raise UserError("this shard is damaged")
        return TrainRows.batch(rows, step)

    monkeypatch.setattr(rows, "batch", broken.__get__(rows))
    batches = train_batches(rows, 0, 9)
    assert [same(next(batches), TrainRows.batch(rows, step)) for step in range(2)] == [True, True]
    with pytest.raises(UserError, match="this shard is damaged"):
        next(batches)


def test_only_as_much_as_asked_for_is_prepared_ahead(store, monkeypatch):
    rows = TrainRows([store], None, [Phase(None, 10, 4)], 0)
    asked = []
    monkeypatch.setattr(rows, "batch", lambda step, *share: asked.append(step) or TrainRows.batch(rows, step, *share))
    batches = train_batches(rows, 50, 10**6, prefetch=3)
    for _ in range(4):
        next(batches)
    batches.close()
    assert asked == list(range(50, 50 + len(asked)))
    assert len(asked) <= 4 + 3 + 2


@pytest.mark.slow
def test_the_rows_need_no_tensorflow_and_an_interrupt_ends_the_process(tmp_path, store):
    program = f"""
        import gc, signal, sys, time
        from jaxlm.config import Phase
        from jaxlm.data.prefetch import train_batches
        from jaxlm.data.rows import TrainRows, held_out_batches
        from jaxlm.data.token_store import TokenStore
        store = TokenStore.open({str(store.directory)!r})
        rows = TrainRows([store], None, [Phase(None, 10, 4)], 0)
        rows.batch(3), list(held_out_batches(store, 10, 8))
        assert "tensorflow" not in sys.modules
        gather = rows.batch
        rows.batch = lambda *share: time.sleep(0.05) or gather(*share)
        alive = train_batches(rows, 0, 10**9, prefetch=1000)  # at work when the interpreter ends
        next(alive)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us ignore it
        try:
            for number, batch in enumerate(train_batches(rows, 0, 10**9)):
                if number == 0:
                    print("ready", flush=True)
        except KeyboardInterrupt as error:
            held = error  # with its traceback
        print(sum(type(thing).__name__ == "OwnedIterator" for thing in gc.get_objects()), flush=True)
        sys.exit(5)
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)  # TensorFlow 2.21 may crash where an interrupt meets an iterator's first batches
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    # One iterator is left, the living one; TensorFlow has said nothing.
    assert (output, errors, process.returncode) == ("1\n", "", 5)


@settings(deadline=None)
@given(length=st.integers(2, 400), batch_size=st.integers(1, 20), prepend_begin=st.booleans())
def test_held_out_batches_have_every_row_once_and_every_token(store, length, batch_size, prepend_begin):
    batches = list(held_out_batches(store, length, batch_size, 0, prepend_begin, 15_000, 16_000))
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    count = -(-1000 // (length - prepend_begin))
    assert all(len(array) == batch_size for batch in batches for array in batch.values())
    assert rows["row_index"].dtype == np.int32
    assert rows["row_index"][:count].tolist() == list(range(count))
    assert (rows["row_index"][count:] == -1).all()
    assert len(batches) == -(-count // batch_size)
    used = (rows["segment_ids"] > 0) & (rows["tokens"] != 15_000)
    assert rows["tokens"][used].tolist() == list(range(1000))
    padding = rows["segment_ids"] == 0
    assert (rows["tokens"][padding] == 16_000).all()
    assert not rows["word_starts"][padding].any()
    assert padding[count:].all()


def test_held_out_rows_can_be_limited_to_the_first_ones(store):
    batches = list(held_out_batches(store, 10, 8, rows=20))
    assert np.concatenate([batch["row_index"] for batch in batches]).tolist() == [*range(20), *[-1] * 4]
    assert sum(len(batch["row_index"]) for batch in held_out_batches(store, 10, 8, rows=10**6)) == 104


def test_the_input_rate_is_measured(store):
    assert measure_input_rate(TrainRows([store], None, [Phase(None, 50, 16)], 0), 5) > 0
