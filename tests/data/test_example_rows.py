"""Packing examples into rows of few shapes, and the rows of each step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import Phase
from jaxlm.data.example_rows import (
    ExampleRows,
    Shape,
    best_row_counts,
    evaluation_batches,
    evaluation_shape,
    fill_rows,
    lay_out,
    shape_for,
)
from jaxlm.data.examples import Examples
from jaxlm.errors import UserError
from jaxlm.text.labelled import Row

PAD, SHAPE = 0, Shape(32, 8)


def make_examples(sizes, examples=None, seed=0):
    """Returns segments of these sizes; `examples` are the numbers of their examples."""
    random = np.random.default_rng(seed)
    tokens = [random.integers(5, 100, size).astype(np.int32) for size in sizes]
    columns = {
        "labels": random.integers(0, 3, len(sizes)).astype(np.int32), "weights": np.ones(len(sizes), np.float32)
    }  # fmt: skip
    count = len(sizes) if examples is None else max(examples) + 1
    return Examples(
        [Row(f"line {n}", {}) for n in range(count)], tokens, [np.zeros(size, np.int32) for size in sizes], columns,
        {"marks": [np.arange(size, dtype=np.int32) for size in sizes]},
        None if examples is None else np.array(examples),
    )  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(2, 32), min_size=1, max_size=60), extra=st.integers(0, 3))
def test_packed_rows_contain_every_segment_once_and_whole(sizes, extra):
    examples = make_examples(sizes)
    layout = lay_out(examples, range(len(sizes)), SHAPE)
    batch = fill_rows(examples, layout, SHAPE, layout.row_count + extra, PAD)
    assert len({*zip(layout.rows.tolist(), layout.slots.tolist(), strict=True)}) == len(sizes)
    for segment, row, slot in zip(layout.segments, layout.rows, layout.slots, strict=True):
        here = batch["segment_ids"][row] == slot + 1
        np.testing.assert_array_equal(batch["tokens"][row][here], examples.tokens[segment])
        np.testing.assert_array_equal(batch["marks"][row][here], examples.token_columns["marks"][segment])
        assert batch["labels"][row, slot] == examples.columns["labels"][segment]
        assert batch["examples"][row, slot] == segment
    assert (batch["segment_ids"] > 0).sum() == sum(sizes)
    assert (batch["examples"] >= 0).sum() == batch["weights"].sum() == len(sizes)


def test_segments_of_one_example_share_its_number_in_the_batch():
    examples = make_examples([5, 6, 7, 8, 9], examples=[0, 0, 1, 2, 2])
    segments = examples.segments_of([2, 0])
    assert segments == [3, 4, 0, 1]
    batch = fill_rows(examples, lay_out(examples, segments, SHAPE), SHAPE, 2, PAD)
    found = {}
    for row, slot in np.argwhere(batch["examples"] >= 0):
        size = int((batch["segment_ids"][row] == slot + 1).sum())
        found[size] = int(batch["examples"][row, slot])
    assert found == {8: 0, 9: 0, 5: 1, 6: 1}


def test_rows_are_as_long_as_the_longest_segment_needs():
    assert shape_for(make_examples([4, 70]), 128) == Shape(72, 18)
    assert shape_for(make_examples([128, 70]), 128).length == 128
    assert shape_for(make_examples([4]), 48) == Shape(32, 8)
    assert shape_for(make_examples([40]), 48) == Shape(40, 1)


@settings(deadline=None)
@given(found=st.lists(st.integers(1, 40), min_size=1, max_size=40), most=st.integers(1, 3))
def test_row_counts_have_the_least_padding(found, most):
    from itertools import combinations

    counts = best_row_counts(found, most)
    assert len(counts) <= most
    assert counts[-1] == max(found)
    padding = lambda chosen: sum(min(c for c in chosen if c >= n) - n for n in found)  # noqa: E731
    sizes = sorted(set(found))
    assert padding(counts) == min(
        padding((*others, sizes[-1]))
        for k in range(most)
        for others in combinations(sizes[:-1], min(k, len(sizes) - 1))
    )


def test_all_batches_of_a_run_have_at_most_four_shapes_and_little_padding():
    sizes = np.random.default_rng(0).geometric(0.1, 3000).clip(3, 66).tolist()
    rows = ExampleRows(make_examples(sizes), [Phase(None, 128, 32)], 0, PAD, 1)
    batches = [rows.batch(step) for step in range(300)]
    assert len({batch["tokens"].shape for batch in batches}) <= 4
    used = sum(int((batch["segment_ids"] > 0).sum()) for batch in batches)
    assert used / sum(batch["tokens"].size for batch in batches) > 0.85


def test_a_batch_of_the_longest_examples_still_fits():
    rows = ExampleRows(make_examples([4] * 900 + [32] * 100), [Phase(None, 32, 64)], 0, PAD, 2)
    rows.examples_of_step = lambda step: np.arange(936, 1000)
    assert rows.batch_rows(0) == 64


@pytest.mark.parametrize("batch_size", [3, 8])
def test_every_example_comes_once_an_epoch(batch_size):
    rows = ExampleRows(make_examples([5] * 20), [Phase(None, 32, batch_size)], 3, PAD, 1)
    seen = np.concatenate([rows.examples_of_step(step) for step in range(40 // batch_size + 1)])
    assert sorted(seen[:20].tolist()) == sorted(seen[20:40].tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:40].tolist()


def test_a_step_depends_on_the_seed_and_its_number_alone():
    examples = make_examples([5, 9, 12, 30, 4, 17, 8])
    make = lambda seed, multiple=2: ExampleRows(examples, [Phase(None, 32, 4)], seed, PAD, multiple)  # noqa: E731
    one, again, other, four = make(0), make(0), make(1), make(0, 4)
    for step in (5, 0, 3):
        jumped = again.batch(step)
        assert all((one.batch(step)[name] == jumped[name]).all() for name in jumped)
        used = one._lay_out(step, one.shape).row_count
        for name in jumped:  # more devices add empty rows only
            np.testing.assert_array_equal(four.batch(step)[name][:used], jumped[name][:used])
    assert any((one.examples_of_step(step) != other.examples_of_step(step)).any() for step in range(3))
    parts = [one.batch(2, first, first + 1) for first in range(one.batch_rows(2))]
    np.testing.assert_array_equal(np.concatenate([part["tokens"] for part in parts]), one.batch(2)["tokens"])


def test_columns_are_those_of_the_batch():
    rows = ExampleRows(make_examples([5, 6, 7]), [Phase(None, 32, 2)], 0, PAD, 1)
    batch = rows.batch(0)
    assert set(batch) == set(rows.columns)
    assert all(batch[name].dtype == dtype for name, dtype in rows.columns.items())


def test_epochs_are_counted_in_examples_over_all_phases():
    rows = ExampleRows(make_examples([5] * 100), [Phase(10, 32, 4), Phase(None, 32, 20)], 0, PAD, 1)
    assert rows.steps_for(2, None) == 10 + 8
    with pytest.raises(UserError, match=r"train\.tokens"):
        rows.steps_for(None, 1e6)


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("parts", [1, 2])
def test_evaluation_has_every_segment_once_on_any_number_of_processes(count, parts):
    examples = make_examples(np.random.default_rng(1).integers(2, 33, count).tolist())
    seen = []
    for part in range(parts):
        segments = []
        for batch, layout in evaluation_batches(examples, SHAPE, 4, PAD, (part,), parts):
            assert len(batch["tokens"]) % (4 // parts) == 0
            segments += layout.segments.tolist()
        seen.append(segments)
    assert all(segments == list(range(count)) for segments in seen)


def test_few_examples_have_few_shapes():
    shapes = {evaluation_shape(make_examples([size]), 512, 32) for size in range(2, 65)}
    assert shapes == {(Shape(32, 8), 1), (Shape(64, 16), 1)}
    assert evaluation_shape(make_examples([60] * 30), 100, 32) == (Shape(64, 16), 32)
    assert evaluation_shape(make_examples([60] * 3), 60, 32, 2) == (Shape(60, 15), 4)


def test_batches_of_many_examples_have_no_more_rows_than_they_need():
    shape, rows = evaluation_shape(make_examples([20] * 1000), 512, 32)
    assert (shape, rows) == (Shape(32, 1), 23)
    assert evaluation_shape(make_examples([20] * 1000), 512, 32, 2)[1] == 24
