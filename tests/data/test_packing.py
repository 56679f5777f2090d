import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.packing import SEGMENTS, pack

PAD = 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 100), max_size=80), st.sampled_from([1, 128, 1024]), st.sampled_from([100, 128, 512]))
def test_each_sequence_is_packed_once_in_its_own_segment(lengths, batch_tokens, longest):
    sequences = [np.arange(size, dtype=np.int32) + 1000 * (n + 1) for n, size in enumerate(lengths)]
    seen = []
    for batch in pack(sequences, batch_tokens, longest, PAD):
        rows, length = batch.tokens.shape
        assert batch.segment_ids.shape == (rows, length)
        assert length <= longest
        assert rows * length <= max(batch_tokens, length)
        assert batch.segment_ids.max() <= SEGMENTS
        for number, row, segment, start in zip(*batch[2:], strict=True):
            positions = np.flatnonzero(batch.segment_ids[row] == segment)
            assert positions.tolist() == list(range(start, start + lengths[number]))
            assert (batch.tokens[row, positions] == sequences[number]).all()
        assert (batch.segment_ids > 0).sum() == sum(lengths[number] for number in batch.sequences)
        assert (batch.tokens[batch.segment_ids == 0] == PAD).all()
        seen += batch.sequences.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_few_shapes_and_little_padding():
    random = np.random.default_rng(0)
    sequences = [np.ones(size, np.int32) for size in np.minimum(random.geometric(0.04, 2000) + 2, 256)]
    batches = list(pack(sequences, 1024, 256, PAD))
    shapes = {batch.tokens.shape for batch in batches}
    assert len(shapes) <= 6
    assert sum(map(len, sequences)) / sum(batch.tokens.size for batch in batches) > 0.9


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 4), (4, 4), (5, 16), (16, 16)])
def test_few_sequences_make_a_smaller_batch(count, rows):
    (batch,) = pack([np.ones(40, np.int32)] * count, 1024, 512, PAD)
    assert batch.tokens.shape == (rows, 64)


def test_packing_is_deterministic():
    sequences = [np.full(size, size, np.int32) for size in (5, 40, 5, 12, 63, 3, 3)]
    first, again = (list(pack(sequences, 128, 64, PAD)) for _ in range(2))
    assert all((a == b).all() for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
