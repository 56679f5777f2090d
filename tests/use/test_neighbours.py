import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlm
from jaxlm.errors import UserError
from jaxlm.use import neighbours

random = np.random.default_rng(0)


def test_similarity_is_the_cosine():
    a, b = random.standard_normal((4, 8)), random.standard_normal((3, 8))
    expected = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
    assert jaxlm.similarity(a, b) == pytest.approx(np.array(expected), abs=1e-6)
    assert (jaxlm.similarity(np.zeros((1, 8)), b) == 0).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_the_scale_of_a_vector_does_not_matter(scale):
    a = np.array([[3.0, 4.0], [0.0, 0.0]]) * scale
    assert jaxlm.similarity(a, [[1.0, 0.0]]) == pytest.approx(np.array([[0.6], [0.0]]))
    assert jaxlm.similarity([[3, -4]], [[-4, -3], [3, -4]]) == pytest.approx(np.array([[0.0, 1.0]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 50), st.integers(0, 10**6))
def test_nearest_is_exact_for_any_size_of_pieces(queries, rows, k, seed):
    draw = np.random.default_rng(seed)
    a, b = (draw.integers(-1, 2, (n, 3)).astype(np.float32) for n in (queries, rows))  # with many equal vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "QUERIES", 2)
        patch.setattr(neighbours, "VECTORS", 7)
        found, cosines = jaxlm.nearest(a, b, k)
    k = min(k, rows)
    assert found.shape == cosines.shape == (queries, k)
    all_cosines = jaxlm.similarity(a, b)
    assert cosines == pytest.approx(-np.sort(-all_cosines, axis=1)[:, :k], abs=1e-6)
    assert np.take_along_axis(all_cosines, found, 1) == pytest.approx(cosines, abs=1e-6)
    assert all(len(set(row)) == k for row in found.tolist())


@pytest.mark.parametrize("scale", [1e-35, 1e-12, 1e25, 1e37])
def test_very_small_and_large_vectors_have_a_cosine(scale):
    a, b = np.array([[3, 4.0]]) * scale, np.array([[4, 3], [3, 4.0]]) * scale
    assert jaxlm.similarity(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(
        np.array([[0.96, 1]]), abs=1e-6
    )
    rows, cosines = jaxlm.nearest(a, b)
    assert rows.tolist() == [[1, 0]]
    assert cosines == pytest.approx(np.array([[1, 0.96]]), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_rejected(value):
    good, bad = np.ones((2, 3)), np.array([[1, 2, 3], [1, value, 3]])
    for call in (jaxlm.similarity, jaxlm.nearest):
        with pytest.raises(UserError, match=r"^(queries|the first array): a vector contains NaN or infinity"):
            call(bad, good)
        with pytest.raises(UserError, match=r"^(corpus|the second array): a vector contains NaN or infinity"):
            call(good, bad)


def test_equal_neighbours_are_ordered_by_row(monkeypatch):
    monkeypatch.setattr(neighbours, "VECTORS", 4)
    rows, _ = jaxlm.nearest(np.ones((1, 2)), np.ones((10, 2)), 6)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_the_corpus_may_be_a_memory_mapped_file(tmp_path):
    corpus = random.standard_normal((50, 4)).astype(np.float32)
    np.save(tmp_path / "corpus.npy", corpus)
    rows, cosines = jaxlm.nearest(corpus[7:9], np.load(tmp_path / "corpus.npy", mmap_mode="r"), 1)
    assert rows.tolist() == [[7], [8]]
    assert cosines == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.ones(3), np.ones((2, 3))), "numbers of shape \\[n, D\\]"),
        ((np.ones((2, 3)), np.ones((2, 4))), "vectors of width 3 and 4"),
        ((np.ones((2, 3)), np.ones((0, 3))), "must contain at least one vector"),
        ((np.array([["a"]]), np.ones((2, 1))), "numbers"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0), "k=0: must be at least 1"),
        ((np.ones((2, 3)), np.ones((2, 3)), "2"), "k must be an int, not str"),
        ((np.ones((2, 3)), np.ones((2, 3)), 1.5), "k must be an int, not float"),
        (([[1, 2], [1]], np.ones((2, 2))), "its rows differ in length"),
        (([[1, np.nan]], np.ones((2, 2))), "queries: a vector contains NaN"),
        ((np.ones((2, 2)), [[1, np.inf]]), "corpus: a vector contains NaN or infinity"),
    ],
)
def test_invalid_arrays_raise_one_sentence(arguments, error):
    with pytest.raises(UserError, match=error):
        jaxlm.nearest(*arguments)
