import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import default_config
from jaxlm.data.facts import DataFacts
from jaxlm.objectives.masking import (
    EVALUATION_RATE,
    Masking,
    evaluation_masking,
    make_masking,
    mask_tokens,
    next_tokens,
    prediction_slots,
)

SCHEMES = ("token", "whole_word", "span")
PAD, UNKNOWN, BEGIN, END, MASK = SPECIAL = (0, 1, 2, 3, 4)
SIZE = 200
MASKING = Masking("token", 0.8, 0.1, 0.2, 10, MASK, SIZE, SPECIAL)
ORDINARY = 7  # some ordinary token

# Compiling is what these tests spend their time on: hardly optimised, and nearly always for rows [512, 32].
ROWS, LENGTH, HIGHEST_RATE = 512, 32, 0.4
masked_batch = jax.jit(
    mask_tokens, static_argnames=("slots", "masking"), compiler_options={"xla_backend_optimization_level": 0}
)


def mask(seed, tokens, segment_ids, word_starts, rate, masking):
    """Masks rows [B, L], with one key a row, and returns NumPy arrays."""
    slots = prediction_slots(masking.scheme, HIGHEST_RATE, tokens.shape[1])
    keys = jax.random.split(jax.random.key(seed), len(tokens))
    parts = [
        jax.tree.map(np.asarray, masked_batch(*(array[i : i + ROWS] for array in rows), rate, slots, masking))
        for rows in [(keys, tokens, segment_ids, word_starts)]
        for i in range(0, len(tokens), ROWS)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def repeat(row, times=ROWS):
    """Returns a row [1, L] as so many."""
    return [np.repeat(array, times, axis=0) for array in row]


def chosen_tokens(masked):
    """Returns bool [B, L], where a prediction is asked for."""
    chosen = np.zeros(masked.inputs.shape, bool)
    row, slot = np.nonzero(masked.weights)
    chosen[row, masked.masked_positions[row, slot]] = True
    return chosen


def text_rows(rows=16 * ROWS, length=LENGTH, sizes=(1,)):
    """Rows of one document of ordinary tokens, in words of random sizes; also each token's size of word."""
    random = np.random.default_rng(0)
    ends = np.minimum(random.choice(sizes, (rows, length)).cumsum(1), length)
    starts = np.pad(ends, ((0, 0), (1, 0)))[:, :-1]
    word_starts = (np.arange(length) == starts[:, :, None]).any(1) if len(sizes) > 1 else np.ones((rows, length), bool)
    size_of_word = np.take_along_axis(ends - starts, word_starts.cumsum(1) - 1, axis=1)
    tokens = random.integers(len(SPECIAL), SIZE, (rows, length), dtype=np.int32)
    return tokens, np.ones((rows, length), np.int32), word_starts, size_of_word


@pytest.fixture(scope="module")
def words_of_all_sizes():
    return text_rows(sizes=(1, 2, 3, 4, 5, 6))


def words_of(segment_ids, word_starts):
    """Returns the places of each word's tokens in a row: a word ends where another or another document begins."""
    words = []
    for place, (segment, begins) in enumerate(zip(segment_ids, word_starts, strict=True)):
        if segment == 0:
            continue
        if begins or place == 0 or segment_ids[place - 1] != segment:
            words.append([])
        words[-1].append(place)
    return words


WORD = st.lists(st.integers(len(SPECIAL), SIZE - 1), min_size=1, max_size=6)
UNKNOWN_IN_WORD = WORD.map(lambda word: [UNKNOWN, *word])
DOCUMENT = st.lists(st.one_of(WORD, WORD, WORD, UNKNOWN_IN_WORD), max_size=8)


@st.composite
def packed_rows(draw):
    """A row [1, L] cut anywhere out of a stream of documents, perhaps with padding, as the pipeline makes it."""
    tokens, segment_ids, word_starts = [], [], []
    for number, document in enumerate(draw(st.lists(DOCUMENT, max_size=5)), 1):
        for word in [[BEGIN], *document, [END]]:
            tokens += word
            segment_ids += [number] * len(word)
            word_starts += [True] + [False] * (len(word) - 1)
    cut = draw(st.integers(0, max(len(tokens) - 1, 0)))
    row = np.zeros((3, 1, LENGTH), np.int32)
    for array, values in zip(row, (tokens, segment_ids, word_starts), strict=True):
        values = values[cut : cut + LENGTH]
        array[0, : len(values)] = values
    row[1] -= np.where(row[1] > 0, row[1, 0, 0] - 1, 0)
    return row[0], row[1], row[2].astype(bool)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(deadline=None, max_examples=25)
@given(row=packed_rows(), seed=st.integers(0, 2**31 - 1), rate=st.sampled_from([0.05, 0.15, 0.3, HIGHEST_RATE]))
def test_every_row_is_masked_by_the_rules(scheme, row, seed, rate):
    tokens, segment_ids, word_starts = repeat(row)
    masked = mask(seed, tokens, segment_ids, word_starts, rate, MASKING._replace(scheme=scheme))
    slots = prediction_slots(scheme, HIGHEST_RATE, LENGTH)
    assert masked.inputs.dtype == masked.masked_positions.dtype == masked.labels.dtype == np.int32
    assert masked.inputs.shape == (ROWS, LENGTH)
    assert masked.masked_positions.shape == masked.labels.shape == masked.weights.shape == (ROWS, slots)
    assert set(np.unique(masked.weights)) <= {0.0, 1.0}

    chosen, used = chosen_tokens(masked), masked.weights > 0
    special = np.isin(tokens, SPECIAL)
    assert not chosen[special | (segment_ids == 0)].any()
    np.testing.assert_array_equal(masked.inputs[~chosen], tokens[~chosen])
    hidden = masked.inputs[chosen]
    assert (((hidden >= len(SPECIAL)) & (hidden < SIZE)) | (hidden == MASK)).all()
    np.testing.assert_array_equal(masked.labels, np.take_along_axis(tokens, masked.masked_positions, axis=1))
    assert (np.diff(masked.masked_positions) > 0)[used[:, 1:]].all()  # used slots come first and ascend
    assert (used[:, :-1] >= used[:, 1:]).all()
    assert not masked.masked_positions[~used].any()

    if scheme != "token":
        for word in words_of(segment_ids[0], word_starts[0]):
            together = chosen[:, word]
            assert (together.all(1) | ~together.any(1)).all()
            assert not (special[0, word].any() and together.any())
    assert not masked.dropped_words.any()  # words of six tokens always have room


@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_and_special_tokens_are_never_masked_in_a_batch_of_lengths_3_and_30(scheme):
    tokens, segment_ids = np.full((2, LENGTH), PAD, np.int32), np.zeros((2, LENGTH), np.int32)
    for row, length in enumerate((3, 30)):
        tokens[row, : length + 2] = [BEGIN, *[ORDINARY] * length, END]
        segment_ids[row, : length + 2] = 1
    rows = repeat((tokens, segment_ids, segment_ids > 0), ROWS // 2)
    chosen = chosen_tokens(mask(0, *rows, 0.4, MASKING._replace(scheme=scheme)))
    np.testing.assert_array_equal(chosen[: ROWS // 2].any(0), [0, 1, 1, 1] + [0] * 28)
    np.testing.assert_array_equal(chosen[ROWS // 2 :].any(0), [0] + [1] * 30 + [0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_special_tokens_or_padding_only_ask_for_nothing(scheme):
    # Padding is what has no segment, whatever its tokens.
    tokens, segment_ids = np.array([[END], [ORDINARY]], np.int32), np.array([[1], [0]], np.int32)
    tokens, segment_ids = (np.tile(a, (ROWS // 2, LENGTH)) for a in (tokens, segment_ids))
    masked = mask(0, tokens, segment_ids, segment_ids > 0, 0.4, MASKING._replace(scheme=scheme))
    assert masked.weights.sum() == masked.dropped_words.sum() == 0
    np.testing.assert_array_equal(masked.inputs, tokens)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rows_masks_depend_on_its_key_alone(scheme, words_of_all_sizes):
    masking, slots = MASKING._replace(scheme=scheme), prediction_slots(scheme, HIGHEST_RATE, LENGTH)
    rows = jax.random.split(jax.random.key(3), ROWS), *(array[:ROWS] for array in words_of_all_sizes[:3])
    whole = masked_batch(*rows, 0.3, slots, masking)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = masked_batch(*(array[order] for array in rows), 0.3, slots, masking)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), shuffled, whole)
    if scheme == "span":
        for i in range(4):
            alone = masked_batch(*(array[i : i + 1] for array in rows), 0.3, slots, masking)
            jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a, b[i : i + 1]), alone, whole)


# Statistics. Keys are fixed: the bounds hold or they do not.


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_realised_rate_is_the_nominal_one_in_short_rows_too(scheme, rate):
    tokens, segment_ids, word_starts, _ = text_rows(sizes=(1, 1, 1, 2, 2, 3))
    tokens[:, 0], word_starts[:, 1] = BEGIN, True
    short = len(tokens) // 2
    tokens[:short, 10:], segment_ids[:short, 10:], word_starts[:short, 10:] = PAD, 0, False
    masked = mask(1, tokens, segment_ids, word_starts, rate, MASKING._replace(scheme=scheme))
    assert masked.weights[:short].sum() / short / 9 == pytest.approx(rate, abs=0.005)
    assert masked.weights[short:].sum() / short / 31 == pytest.approx(rate, abs=0.005)
    assert not masked.dropped_words.any()  # the room of the highest rate suffices for it


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("scheme", ["whole_word", "span"])
def test_a_words_chance_does_not_depend_on_its_length(scheme, rate, words_of_all_sizes):
    *rows, size = words_of_all_sizes
    chosen = chosen_tokens(mask(5, *rows, rate, MASKING._replace(scheme=scheme)))
    for length in range(1, 7):
        assert chosen[size == length].mean() == pytest.approx(rate, abs=0.012), f"words of {length}"


@pytest.mark.parametrize("scheme", ["whole_word", "span"])
def test_a_word_of_three_pieces_is_masked_whole_or_not_at_all(scheme):
    tokens, word_starts = np.zeros((2, 1, LENGTH), np.int32)
    tokens[0, :10] = [BEGIN, 10, 11, 12, 13, 14, 15, 16, 17, END]
    word_starts[0, :10] = [1, 1, 1, 0, 0, 1, 1, 1, 0, 1]
    rows = repeat((tokens, (tokens > 0).astype(np.int32), word_starts.astype(bool)), 1024)
    pieces = chosen_tokens(mask(7, *rows, 0.3, MASKING._replace(scheme=scheme)))[:, 2:5].sum(1)
    assert set(pieces) == {0, 3}
    assert (pieces == 3).mean() == pytest.approx(0.3, abs=0.05)


def kinds(masked, tokens, chosen):
    """Returns how many of the chosen tokens became the mask, another token, and stayed."""
    new, old = masked.inputs[chosen], tokens[chosen]
    return np.array([(new == MASK).sum(), ((new != MASK) & (new != old)).sum(), (new == old).sum()])


def expected_kinds(masking, total):
    unseen = masking.random_share / len(masking.ordinary_ids)  # a random token may be the old one
    kept = 1 - masking.mask_share - masking.random_share
    return total * np.array([masking.mask_share, masking.random_share - unseen, kept + unseen])


@pytest.mark.parametrize("scheme", ["token", "whole_word"])
def test_of_the_predicted_80_percent_are_masked_10_random_and_10_kept(scheme, words_of_all_sizes):
    tokens, segment_ids, word_starts, _ = words_of_all_sizes
    masking = MASKING._replace(scheme=scheme)
    masked = mask(11, tokens, segment_ids, word_starts, 0.3, masking)
    chosen = chosen_tokens(masked)
    if scheme == "whole_word":
        chosen &= word_starts  # what happens to a word happens to all of it, as the next test says
    expected = expected_kinds(masking, chosen.sum())
    assert ((kinds(masked, tokens, chosen) - expected) ** 2 / expected).sum() < 13.8  # chance of more: 0.001


def test_the_tokens_of_a_word_share_their_kind(words_of_all_sizes):
    tokens, segment_ids, word_starts, size = words_of_all_sizes
    masked = mask(12, tokens, segment_ids, word_starts, 0.3, MASKING._replace(scheme="whole_word"))
    chosen = chosen_tokens(masked)
    new, old = (array[chosen & (size == 3)].reshape(-1, 3) for array in (masked.inputs, tokens))
    masks, changed = new == MASK, new != old
    np.testing.assert_array_equal(masks.all(1), masks.any(1))
    assert np.mean(changed.all(1) == changed.any(1)) > 0.99  # a random token is the old one once in 195 times


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 0.3)])
def test_other_shares_are_as_set_and_random_tokens_are_drawn_evenly_from_the_ordinary_ones(shares):
    masking = MASKING._replace(mask_share=shares[0], random_share=shares[1], special_ids=(*SPECIAL, 60, 199))
    tokens, segment_ids = np.full((16 * ROWS, LENGTH), ORDINARY, np.int32), np.ones((16 * ROWS, LENGTH), np.int32)
    masked = mask(13, tokens, segment_ids, segment_ids > 0, 0.4, masking)
    chosen = chosen_tokens(masked)
    expected, counted = expected_kinds(masking, chosen.sum()), kinds(masked, tokens, chosen)
    assert (counted[expected == 0] == 0).all()
    possible = expected > 0
    assert ((counted - expected)[possible] ** 2 / expected[possible]).sum() < 13.8

    counts = np.bincount(masked.inputs[chosen], minlength=SIZE)
    assert not counts[[PAD, UNKNOWN, BEGIN, END, 60, 199]].any()
    counts = counts[[id for id in masking.ordinary_ids if id != ORDINARY]]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 270  # 191 degrees of freedom; chance 0.0002


def stretches(values):
    """Returns the stretches of True in bool [L] as (start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], values.astype(int), [0]])))
    return edges.reshape(-1, 2)


@pytest.fixture(scope="module")
def sparse_spans():
    """Whether each token of a span became the mask; spans so rare that they seldom touch; tokens are words."""
    masking = MASKING._replace(scheme="span", mask_share=0.5, random_share=0.0)
    tokens, *rest, _ = text_rows(128, 2048)
    masked = mask(17, tokens, *rest, 0.02, masking)
    return [masked.inputs[row, a:b] == MASK for row, c in enumerate(chosen_tokens(masked)) for a, b in stretches(c)]


def test_span_lengths_follow_the_clipped_geometric_distribution(sparse_spans):
    lengths = np.array([len(span) for span in sparse_spans])
    shares = 0.2 * 0.8 ** np.arange(10)
    shares /= shares.sum()
    assert shares @ np.arange(1, 11) == pytest.approx(3.8, abs=0.01)  # as SpanBERT has it
    assert lengths.mean() == pytest.approx(3.8, abs=0.25)
    assert (lengths > 10).mean() < 0.03
    for length in range(1, 11):
        assert (lengths == length).mean() == pytest.approx(shares[length - 1], abs=0.02)


def test_a_span_is_masked_or_kept_as_one(sparse_spans):
    longer = [span for span in sparse_spans if len(span) > 1]
    assert np.mean([span.all() or not span.any() for span in longer]) > 0.95
    assert np.mean([span.all() for span in sparse_spans]) == pytest.approx(0.5, abs=0.05)


def test_spans_never_cross_documents():
    tokens, _, word_starts, _ = text_rows()
    segment_ids = np.tile(np.repeat(np.arange(1, 5, dtype=np.int32), 8), (len(tokens), 1))
    chosen = chosen_tokens(mask(23, tokens, segment_ids, word_starts, 0.15, MASKING._replace(scheme="span")))
    assert chosen[:, 4::8][chosen[:, 3::8]].mean() > 0.5  # the next word of the document is likely in the span
    assert chosen[:, 8::8][chosen[:, 7:-1:8]].mean() < 0.15  # the next document's first is not


@pytest.mark.parametrize("scheme", ["whole_word", "span"])
def test_a_word_longer_than_the_rows_room_is_left_out_and_counted(scheme):
    tokens, segment_ids, word_starts, _ = text_rows(1024)
    word_starts[:, 5:29] = False  # one word of 25 tokens; the room is 21
    masked = mask(29, tokens, segment_ids, word_starts, 0.4, MASKING._replace(scheme=scheme))
    assert masked.masked_positions.shape[1] == 21
    chosen = chosen_tokens(masked)
    assert not chosen[:, 4:29].any()
    assert chosen[:, :4].any()
    assert set(masked.dropped_words) == {0, 1}
    assert masked.dropped_words.mean() == pytest.approx(0.4, abs=0.05)


def test_slots_hold_the_rate_and_never_more_than_the_row():
    assert prediction_slots("token", 0.15, 128) == 20
    assert prediction_slots("whole_word", 0.15, 128) == prediction_slots("span", 0.15, 128) == 28
    assert prediction_slots("whole_word", 0.9, 16) == 16


def test_evaluation_masks_single_tokens_80_10_10_whatever_the_settings():
    trained = MASKING._replace(scheme="span", mask_share=1.0, random_share=0.0)
    masking = evaluation_masking(trained)
    assert (masking.scheme, masking.mask_share, masking.random_share) == ("token", 0.8, 0.1)
    assert (masking.mask_id, masking.vocab_size, masking.special_ids) == (MASK, SIZE, SPECIAL)
    assert EVALUATION_RATE == 0.15


def test_make_masking_reads_the_settings():
    section = default_config().masking
    section.scheme, section.mask_share, section.span_max = "span", 0.7, 4
    expected = Masking("span", 0.7, 0.1, 0.2, 4, MASK, SIZE, SPECIAL)
    assert make_masking(section, DataFacts(MASK, 0, SPECIAL, vocab_size=SIZE), SIZE + 64) == expected
    assert make_masking(section, DataFacts(MASK, 0, SPECIAL), SIZE) == expected


def test_rows_of_the_token_table_without_a_token_are_never_drawn(words_of_all_sizes):
    tokens, segment_ids, word_starts, _ = (array[:ROWS] for array in words_of_all_sizes)
    section = default_config().masking
    section.mask_share, section.random_share = 0.0, 1.0
    masking = make_masking(section, DataFacts(MASK, 0, (*SPECIAL, 9), vocab_size=15), SIZE)
    tokens = np.where(tokens == 9, ORDINARY, tokens % 10 + 5).astype(np.int32)
    masked = mask(3, tokens, segment_ids, word_starts, 0.4, masking)
    drawn = masked.inputs[chosen_tokens(masked)]
    assert set(drawn.tolist()) == {5, 6, 7, 8, 10, 11, 12, 13, 14}


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=24, max_size=24),
    st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda lengths: sum(lengths) <= 24),
)
def test_next_tokens_are_those_of_the_same_document_but_special_ones(tokens, lengths):
    row = np.array(tokens, np.int32)
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths).astype(np.int32)
    segments = np.pad(segments, (0, len(row) - len(segments)))
    found = next_tokens(row[None], segments[None], MASKING)
    for i in range(len(row)):
        follows = i + 1 < len(row) and 0 < segments[i] == segments[i + 1] and tokens[i + 1] not in SPECIAL
        assert found.weights[0, i] == follows
        if follows:
            assert found.labels[0, i] == tokens[i + 1]
    np.testing.assert_array_equal(found.inputs[0], row)
    np.testing.assert_array_equal(found.masked_positions[0], np.arange(len(row)))
