"""Packs examples into the rows of step s, each segment apart, in at most four shapes.

The examples of a step, their order and their places in its rows depend on (seed, step) alone.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.config import Phase
from jaxlm.data.examples import Examples
from jaxlm.data.permutation import permute
from jaxlm.data.rows import RowSource, joined, runs_of_parts
from jaxlm.errors import UserError

ROW_MULTIPLE = 8  # of tokens, in the length of a row
SHORTEST_ROW = 32  # tokens
SHORTEST_SEGMENT = 4  # tokens: a row of L tokens has room for L / 4 segments
SIMULATED_STEPS = 256  # from which the length and the numbers of rows are chosen
ROW_FACTORS = (1.0, 1.25, 1.5, 2.0)  # lengths of rows that are tried, relative to the longest segment
ROW_COUNTS = 3  # numbers of rows that are chosen; beyond them there is one in which every batch fits


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of rows: their length in tokens, and the segments that fit into one."""

    length: int
    slots: int


def shape_for(examples: Examples, longest: int, factor: float = 1.0) -> Shape:
    """Returns the shape of the shortest rows into which every segment fits, or of rows `factor` times as long.

    Rows have at most `longest` tokens.
    """
    tokens = int(factor * max(SHORTEST_ROW, examples.longest))
    length = min(longest, -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE)
    shortest = min((len(tokens) for tokens in examples.tokens), default=length)
    return Shape(length, max(1, length // max(shortest, SHORTEST_SEGMENT)))


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where each segment of a batch goes."""

    segments: np.ndarray  # int64 [n]: which segment of the examples
    rows: np.ndarray  # int64 [n]
    slots: np.ndarray  # int64 [n], from 0: the segment id minus 1
    starts: np.ndarray  # int64 [n]: its first token in the row

    @property
    def row_count(self) -> int:
        return int(self.rows.max()) + 1 if len(self.rows) else 0


def lay_out(examples: Examples, segments: Sequence[int], shape: Shape) -> Layout:
    """Returns places for segments in as few rows as best fit decreasing finds."""
    lengths = np.array([len(examples.tokens[segment]) for segment in segments], np.int64)
    rows, slots, starts = np.zeros((3, len(lengths)), np.int64)
    with_room: list[list[int]] = [[] for _ in range(shape.length + 1)]  # by the tokens that are left
    used: list[int] = []  # segments in each row
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        room = next((room for room in range(size, shape.length + 1) if with_room[room]), None)
        if room is None:
            row, room = len(used), shape.length
            used.append(0)
        else:
            row = with_room[room].pop()
        rows[number], slots[number], starts[number] = row, used[row], shape.length - room
        used[row] += 1
        if used[row] < shape.slots:
            with_room[room - size].append(row)
    return Layout(np.asarray(segments, np.int64), rows, slots, starts)


def columns_of(examples: Examples) -> dict[str, tuple[str, np.dtype, tuple[int, ...]]]:
    """Returns what belongs to a batch of these examples: name -> ("token" or "segment", dtype, trailing shape)."""
    int32 = np.dtype(np.int32)
    found: dict[str, tuple[str, np.dtype, tuple[int, ...]]] = dict.fromkeys(
        ("tokens", "segment_ids", "token_types"), ("token", int32, ())
    )
    found["examples"] = ("segment", int32, ())
    found |= {name: ("segment", array.dtype, array.shape[1:]) for name, array in examples.columns.items()}
    return found | {name: ("token", arrays[0].dtype, ()) for name, arrays in examples.token_columns.items()}


def fill_rows(examples: Examples, layout: Layout, shape: Shape, rows: int, pad_id: int) -> dict[str, np.ndarray]:
    """Returns a batch of `rows` rows.

    It has tokens, segment_ids (from 1; 0 on padding) and token_types int32 [R, L], the token columns [R, L], the
    columns [R, S, ...], and examples int32 [R, S]: the number of each segment's example among those of the batch, from
    0, and -1 where a row has fewer segments. Columns are 0 there.
    """
    batch = {
        name: np.zeros((rows, shape.length if of == "token" else shape.slots, *trailing), dtype)
        for name, (of, dtype, trailing) in columns_of(examples).items()
    }
    batch["tokens"].fill(pad_id)
    batch["examples"].fill(-1)
    if examples.example is None:
        numbers = np.arange(len(layout.segments))
    else:
        _, numbers = np.unique(examples.example[layout.segments], return_inverse=True)
        # In the order of the batch, which is not that of the file.
        order = {old: new for new, old in enumerate(dict.fromkeys(numbers.tolist()))}
        numbers = np.array([order[number] for number in numbers.tolist()])
    batch["examples"][layout.rows, layout.slots] = numbers
    for name, values in examples.columns.items():
        batch[name][layout.rows, layout.slots] = values[layout.segments]
    places = zip(
        layout.segments.tolist(), layout.rows.tolist(), layout.slots.tolist(), layout.starts.tolist(), strict=True
    )
    for segment, row, slot, start in places:
        here = slice(start, start + len(examples.tokens[segment]))
        batch["tokens"][row, here] = examples.tokens[segment]
        batch["token_types"][row, here] = examples.token_types[segment]
        batch["segment_ids"][row, here] = slot + 1
        for name, arrays in examples.token_columns.items():
            batch[name][row, here] = arrays[segment]
    return batch


class ExampleRows(RowSource):
    """The rows of training: `batch_size` examples per step, in an order that is new in each epoch, packed."""

    def __init__(self, examples: Examples, phases: Sequence[Phase], seed: int, pad_id: int, multiple: int) -> None:
        self.examples, self.phases, self.seed = examples, tuple(phases), seed
        self.pad_id, self.multiple = pad_id, multiple
        self.columns: Mapping[str, Any] = {name: dtype for name, (_, dtype, _) in columns_of(examples).items()}
        self._first: list[tuple[int, int]] = []  # of each phase: its first step, and the examples before it
        step = consumed = 0
        for phase in self.phases:
            self._first.append((step, consumed))
            step += phase.steps or 0
            consumed += (phase.steps or 0) * phase.batch_size
        self.shape, self._counts = self._best_shape(max(phase.sequence_length for phase in phases))
        self._packed: tuple[int, dict[str, np.ndarray]] | None = None

    def _phase(self, step: int) -> int:
        return max(n for n, (first, _) in enumerate(self._first) if first <= step)

    def examples_of_step(self, step: int) -> np.ndarray:
        """Returns the examples of a step, int64 [batch_size]."""
        index, total = self._index_of_step(step), len(self.examples)
        epochs, chosen = index // total, index % total
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = permute(chosen[here], total, (self.seed, int(epoch)))
        return chosen

    def epochs_of_step(self, step: int) -> np.ndarray:
        """Returns the epoch of each example of a step, from 0, int64 [batch_size]."""
        return self._index_of_step(step) // len(self.examples)

    def _index_of_step(self, step: int) -> np.ndarray:
        number = self._phase(step)
        first, consumed = self._first[number]
        size = self.phases[number].batch_size
        return consumed + (step - first) * size + np.arange(size)

    def segments_of_step(self, step: int) -> tuple[Examples, Sequence[int]]:
        """Returns examples, and the segments of them that a step learns from."""
        return self.examples, self.examples.segments_of(self.examples_of_step(step).tolist())

    def _lay_out(self, step: int, shape: Shape) -> Layout:
        return lay_out(*self.segments_of_step(step), shape)

    def _best_shape(self, longest: int) -> tuple[Shape, list[tuple[int, ...]]]:
        """Returns the shape of rows, and the numbers of rows that batches of each phase may have.

        They are few, so that few programs are compiled, and have the least padding in the first steps of each phase.
        The last number fits every batch: a row for each of its segments.
        """
        best: tuple[int, Shape, list[tuple[int, ...]]] | None = None
        for shape in dict.fromkeys(shape_for(self.examples, longest, factor) for factor in ROW_FACTORS):
            rows, counts = 0, []
            for (first, _), phase in zip(self._first, self.phases, strict=True):
                epoch = math.ceil(len(self.examples) / phase.batch_size)
                steps = range(first, first + min(SIMULATED_STEPS, epoch, phase.steps or SIMULATED_STEPS))
                found = [self._multiple(self._lay_out(step, shape).row_count) for step in steps]
                chosen = best_row_counts(found)
                rows += sum(next(count for count in chosen if count >= one) for one in found)
                segments = np.sort(np.diff(self.examples.first))[::-1]
                most = int(segments[np.arange(phase.batch_size) % len(segments)].sum())
                counts.append((*chosen, self._multiple(most)))
            if best is None or rows * shape.length < best[0]:
                best = rows * shape.length, shape, counts
        assert best
        return best[1:]

    def _multiple(self, rows: int) -> int:
        return -(-rows // self.multiple) * self.multiple

    def _whole(self, step: int) -> dict[str, np.ndarray]:
        if self._packed is None or self._packed[0] != step:
            examples, segments = self.segments_of_step(step)
            layout = lay_out(examples, segments, self.shape)
            rows = next(count for count in self._counts[self._phase(step)] if count >= layout.row_count)
            self._packed = step, fill_rows(examples, layout, self.shape, rows, self.pad_id)
        return self._packed[1]

    def batch_rows(self, step: int) -> int:
        return len(self._whole(step)["tokens"])

    def batch(self, step: int, first: int = 0, last: int | None = None) -> dict[str, np.ndarray]:
        return {name: array[first:last] for name, array in self._whole(step).items()}

    def steps_for(self, epochs: float | None, tokens: float | None) -> int:
        if epochs is None:
            raise UserError("train.tokens does not apply to labelled examples; set train.epochs or train.steps")
        done, wanted = self._first[-1][1], epochs * len(self.examples)
        return max(self._first[-1][0] + math.ceil((wanted - done) / self.phases[-1].batch_size), 1)

    def describe(self) -> str:
        return f"{len(self.examples):,} examples per epoch"


def best_row_counts(found: Sequence[int], most: int = ROW_COUNTS) -> tuple[int, ...]:
    """Returns at most `most` numbers, ascending, with the least padding if each of `found` is raised to one of them."""
    sizes, times = np.unique(found, return_counts=True)
    # cost[j, i]: the padding if the i smallest sizes are raised to j numbers, the largest of them sizes[i - 1]
    weight, total = np.concatenate([[0], times.cumsum()]), np.concatenate([[0], (times * sizes).cumsum()])
    count = len(sizes)
    cost = np.full((most + 1, count + 1), np.inf)
    cost[0, 0] = 0
    chosen = np.zeros((most + 1, count + 1), np.int64)
    for j in range(1, most + 1):
        cost[j, 0] = 0
        for i in range(1, count + 1):
            raised = cost[j - 1, :i] + (weight[i] - weight[:i]) * sizes[i - 1] - (total[i] - total[:i])
            chosen[j, i] = int(raised.argmin())
            cost[j, i] = raised[chosen[j, i]]
    result, i = [], count
    for j in range(most, 0, -1):
        if i:
            result.append(int(sizes[i - 1]))
            i = int(chosen[j, i])
    return tuple(reversed(result))


def evaluation_shape(examples: Examples, longest: int, batch_size: int, parts: int = 1) -> tuple[Shape, int]:
    """Returns the shape of the rows in which examples are evaluated, and the number of rows in a batch.

    A batch has about `batch_size` segments, and its rows are a multiple of `parts`. If all segments fit into one batch,
    lengths and numbers are powers of two, so that a model in use compiles few programs.
    """
    count = len(examples.tokens)
    shape = shape_for(examples, longest)
    if count <= batch_size:
        length = min(longest, _power_of_two(shape.length))
        shape = Shape(length, max(1, length // SHORTEST_SEGMENT))
        needed = max(1, lay_out(examples, range(count), shape).row_count)
        return shape, parts * _power_of_two(-(-needed // parts))
    mean = sum(len(tokens) for tokens in examples.tokens) / count
    return shape, parts * max(1, math.ceil(batch_size * mean / (0.9 * shape.length * parts)))


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def evaluation_batches(
    examples: Examples, shape: Shape, rows: int, pad_id: int, parts_here: Sequence[int] = (0,), parts: int = 1
) -> Iterator[tuple[dict[str, np.ndarray], Layout]]:
    """Yields batches, and where each of their segments is; together they have each segment once, in order.

    A batch has `rows` rows, a multiple of `parts`, or rarely twice as many. A process gets the rows of its parts, and
    the places in all rows.
    """
    room = int(0.95 * rows * shape.length)
    chosen: list[int] = []
    used = 0
    for segment in range(len(examples.tokens) + 1):
        size = len(examples.tokens[segment]) if segment < len(examples.tokens) else room + 1
        if chosen and (used + size > room or len(chosen) >= rows * shape.slots):
            layout = lay_out(examples, chosen, shape)
            count = -(-layout.row_count // rows) * rows
            batch = fill_rows(examples, layout, shape, count, pad_id)
            runs = runs_of_parts(parts_here, parts, count)
            yield {name: joined([array[slice(*run)] for run in runs]) for name, array in batch.items()}, layout
            used, chosen = 0, []
        chosen.append(segment)
        used += size
