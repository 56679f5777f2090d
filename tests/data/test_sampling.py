from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.sampling import Hashes, Sample, hashes_of


@given(
    texts=st.lists(st.text("ab é", min_size=1, max_size=30), unique=True, min_size=1, max_size=30),
    size=st.integers(1, 400),
    shuffle=st.randoms(),
)
@settings(deadline=None)
def test_the_sample_fits_and_does_not_depend_on_the_order(texts, size, shuffle):
    def sample_of(order):
        sample = Sample(size)
        for text in order:
            sample.offer(text, hashes_of(text)[2])
        return list(sample.texts()), sample.bytes

    chosen, count = sample_of(texts)
    assert count == sum(len(text.encode()) for text in chosen)
    assert count <= size or len(chosen) == 1
    assert chosen == [text for text in texts if text in chosen]
    if sum(len(text.encode()) for text in texts) <= size:
        assert chosen == texts
    shuffled = list(texts)
    shuffle.shuffle(shuffled)
    assert sorted(sample_of(shuffled)[0]) == sorted(chosen)


def test_the_sample_takes_pieces_from_all_of_the_long_documents():
    sample = Sample(200_000)
    for number in range(10):
        sample.offer(f"{number} " * 100_000, number * 2**60)
    pieces = list(sample.texts())
    assert sample.bytes > 180_000
    assert max(map(len, pieces)) <= 10_000
    assert len({piece.split()[0] for piece in pieces}) > 5


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=200))
@settings(deadline=None)
def test_hashes_are_a_set(keys):
    hashes, plain = Hashes(), {0}
    assert hashes.add(0)
    for key in keys:
        key = 0 if key == 1 else key  # 0 is stored as 1
        assert (key in hashes) == (key in plain)
        assert hashes.add(key) == (key not in plain)
        plain.add(key)


def test_hashes_stay_a_set_as_they_grow():
    hashes, keys = Hashes(), [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(1, 20_000)]
    assert all(hashes.add(key) for key in keys)
    assert not any(hashes.add(key) for key in keys)
    assert hashes.count == len(keys)
    assert 8 * len(hashes.table) <= 24 * len(keys)
