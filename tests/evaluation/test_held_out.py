import dataclasses
import functools
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.data.facts import DataFacts
from jaxlm.evaluation import held_out
from jaxlm.evaluation.held_out import evaluate_held_out, make_evaluation_step, remark
from jaxlm.model.config import encoder_config
from jaxlm.model.heads import MaskedLM, init_params
from jaxlm.objectives.masking import Masking

SIZE, LENGTH, ROWS = 40, 24, 10
PAD, BEGIN, END, MASK = SPECIAL = (0, 1, 2, 3)
ORDINARY = LENGTH - 2
MASKING = Masking("token", 0.8, 0.1, 0.2, 10, MASK, SIZE, SPECIAL)
COUNTS = np.where(np.isin(np.arange(SIZE), SPECIAL), 9000, 3 * np.arange(SIZE)[::-1] ** 2)
PIECE_BYTES = np.array([0.0] * len(SPECIAL) + [2.0**i for i in range(ORDINARY)] + [1.0] * (SIZE - ORDINARY - 4))
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


@pytest.fixture(scope="module")
def model():
    section = default_config().model
    section.update(layers=1, width=16, heads=2, feed_forward_width=32)
    return MaskedLM(encoder_config(section, SIZE))


@pytest.fixture(scope="module")
def params(model):
    return jit(lambda: jax.tree.map(lambda leaf: 10 * leaf, init_params(model.config, 0)))()


@pytest.fixture(scope="module")
def step(model):
    return jit(make_evaluation_step(model, MASKING, COUNTS, PIECE_BYTES, LENGTH).function)


@pytest.fixture(scope="module")
def rows():
    """Ten rows, each with every token of 22 once, so that the bytes of the masked tokens identify them."""
    random = np.random.default_rng(0)
    orders = [random.permutation(ORDINARY) + len(SPECIAL) for _ in range(ROWS)]
    return np.array([[BEGIN, *order, END] for order in orders], np.int32)


def batches(tokens, size, first=0):
    """Batches as the pipeline makes them: in order, the last filled with rows of padding, numbered -1."""
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        fill = ((0, size - len(part)), (0, 0))
        index = np.arange(first + start, first + start + len(part), dtype=np.int32)
        padded = np.pad(part, fill, constant_values=PAD)
        segment_ids = np.pad(np.ones_like(part), fill)
        yield {
            "tokens": padded,
            "segment_ids": segment_ids,
            "word_starts": segment_ids > 0,
            "row_index": np.pad(index, fill[0], constant_values=-1),
        }


def masked_positions(step, params, tokens, index=0):
    """Returns the masked positions of one row with this index, sorted."""
    (batch,) = batches(tokens[None], 1, index)
    binary = int(step(params, batch)["bytes"])
    ids = [len(SPECIAL) + i for i in range(ORDINARY) if binary >> i & 1]
    return sorted(int(np.flatnonzero(tokens == id)[0]) for id in ids)


def test_a_rows_masks_depend_on_its_index_alone(step, params, rows):
    positions = [masked_positions(step, params, rows[0], index) for index in range(ROWS)]
    assert len({tuple(p) for p in positions}) == ROWS  # another index, other masks
    assert {len(p) for p in positions} == {3, 4}  # 15% of 22
    for index in range(ROWS):
        assert masked_positions(step, params, rows[index], index) == positions[index]  # whatever the text


def test_masks_are_the_same_for_every_model_masking_scheme_and_training_text(model, step, params, rows):
    trained = MASKING._replace(scheme="span", mask_share=1.0, random_share=0.0, span_max=3)
    size = ORDINARY + len(SPECIAL)  # a tokenizer smaller than the model's table
    other = jit(make_evaluation_step(model, trained, COUNTS[:size] + 7, PIECE_BYTES[:size], LENGTH).function)
    fresh = jax.tree.map(np.zeros_like, params)
    for index in range(4):
        (batch,) = batches(rows[index : index + 1], 1, index)
        for name in ("loss", "correct", "correct_top5", "predictions", "bytes"):
            assert other(params, batch)[name] == step(params, batch)[name]
        assert masked_positions(other, fresh, rows[index], index) == masked_positions(step, params, rows[index], index)

    labels = np.concatenate([rows[index, masked_positions(step, params, rows[index], index)] for index in range(ROWS)])
    frequencies = np.pad(COUNTS[:size] + 7, (0, SIZE - size)) + 1
    expected = -np.log(frequencies[labels] / frequencies.sum()).mean()
    assert evaluate_held_out(other, params, batches(rows, 1))["unigram_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_model_does_not_see_what_it_must_predict(step, params):
    params = jax.tree.map(np.array, params)
    params["head"]["bias"][list(SPECIAL)] = -1e6
    row, totals = np.array([BEGIN, *range(4, 10), *[END] * (LENGTH - 7)], np.int32), []
    for index in range(20):
        positions = masked_positions(step, params, row, index)
        if len(positions) == 1:
            answers = np.repeat(row[None], SIZE - len(SPECIAL), axis=0)
            answers[:, positions[0]] = np.arange(len(SPECIAL), SIZE)
            losses = [float(step(params, batch)["loss"]) for row in answers for batch in batches(row[None], 1, index)]
            totals.append(np.exp(-np.array(losses)).sum())
    # If the input hides the answer, the answers' probabilities add up to 1; one masked token in ten is not hidden.
    assert len(totals) > 10
    assert 0.7 < np.mean(np.isclose(totals, 1, atol=1e-3)) < 1


@pytest.mark.slow
def test_10_rows_by_8_and_3_and_1_give_the_same_figures(step, params, rows):
    alone = [masked_positions(step, params, rows[index], index) for index in range(ROWS)]
    one, three, eight = (evaluate_held_out(step, params, batches(rows, size)) for size in (1, 3, 8))
    assert one["n"] == three["n"] == eight["n"] == sum(map(len, alone))
    assert three == pytest.approx(one, rel=1e-5)
    assert eight == pytest.approx(one, rel=1e-5)
    assert one["loss"] != pytest.approx(evaluate_held_out(step, params, batches(rows[:9], 1))["loss"], rel=1e-3)


def test_evaluating_twice_gives_the_same_bits(step, params, rows):
    assert evaluate_held_out(step, params, batches(rows, 8)) == evaluate_held_out(step, params, batches(rows, 8))


def test_rows_of_padding_count_nothing(step, params, rows):
    (batch,) = batches(rows[:8], 8)
    nothing = {name: np.full_like(array, -1 if name == "row_index" else 0) for name, array in batch.items()}
    assert all(float(total) == 0 for total in step(params, nothing).values())


def test_without_masked_tokens_every_metric_is_nan(step, params):
    result = evaluate_held_out(step, params, [])
    assert result.pop("n") == 0
    assert all(math.isnan(value) for value in result.values())


@pytest.mark.parametrize(
    ("loss", "n", "text"),
    [
        (4.0, 5000, "the loss is not below the unigram baseline"),
        (4.1, 20, "the loss is not below the unigram baseline"),
        (3.9, 152, r"only 152 masked tokens are evaluated, so the 95% interval of the accuracy is ±5\.0 points"),
        (3.9, 5000, "^$"),
        (math.nan, 0, "held_out: the text is too short to have a masked token, so it has no loss"),
    ],
)
def test_a_loss_that_means_little_is_remarked(loss, n, text):
    assert re.search(text, remark("held_out", {"loss": loss, "unigram_loss": 4.0, "accuracy": 0.112, "n": n}))


def test_the_unigram_baseline_and_bytes_are_computed_from_counts_and_labels(step, params, rows):
    result = evaluate_held_out(step, params, batches(rows, 8))
    labels = np.concatenate([rows[index, masked_positions(step, params, rows[index], index)] for index in range(ROWS)])
    shares = (COUNTS + 1) / (COUNTS + 1).sum()
    assert result["unigram_loss"] == pytest.approx(-np.log(shares[labels]).mean(), rel=1e-5)
    assert result["unigram_top5"] == pytest.approx(np.isin(labels, [4, 5, 6, 7, 8]).mean(), rel=1e-6)
    assert result["nats_per_byte"] == pytest.approx(result["loss"] * len(labels) / PIECE_BYTES[labels].sum(), rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]), rel=1e-6)


def test_a_model_that_knows_only_frequencies_is_as_good_as_the_unigram_baseline(step, params, rows):
    params, rows = jax.tree.map(np.zeros_like, params), np.tile(rows, (4, 1))
    bias = np.log(COUNTS + 1).astype(np.float32)
    params["head"]["bias"] = bias
    result = evaluate_held_out(step, params, batches(rows, 8))
    assert result["loss"] == pytest.approx(result["unigram_loss"], rel=1e-5)

    params["head"]["bias"] = np.where(
        np.isin(np.arange(SIZE), SPECIAL), -1e6, bias
    )  # the baseline proposes ordinary tokens only
    result = evaluate_held_out(step, params, batches(rows, 8))
    labels = np.concatenate(
        [rows[index, masked_positions(step, params, rows[index], index)] for index in range(len(rows))]
    )
    assert {4, 8, 9} < set(labels.tolist())
    assert result["accuracy"] == pytest.approx((labels == 4).mean())
    assert result["accuracy_top5"] == pytest.approx(np.isin(labels, [4, 5, 6, 7, 8]).mean())
    assert result["accuracy_top5"] == pytest.approx(result["unigram_top5"])


@pytest.mark.slow
def test_rows_of_the_token_table_without_a_token_are_not_drawn_and_have_no_frequency(model, params, rows, monkeypatch):
    seen = []
    monkeypatch.setattr(held_out, "make_evaluation_step", lambda model, masking, *_: seen.append(masking))
    monkeypatch.setattr(held_out, "evaluate_held_out", lambda *_: {})
    monkeypatch.setattr(held_out, "held_out_batches", lambda *_: ())
    monkeypatch.setattr(held_out, "held_out_count", lambda *_: 1)
    monkeypatch.setattr(held_out.sharding, "local_parts", lambda mesh: ((0,), 1))
    facts = DataFacts(MASK, PAD, SPECIAL, COUNTS, vocab_size=SIZE)
    tokenizer = SimpleNamespace(piece_bytes=lambda: PIECE_BYTES, begin_id=BEGIN, pad_id=PAD)
    large = dataclasses.replace(model.config, vocab_size=SIZE + 24)
    assembly = SimpleNamespace(
        config=default_config(), encoder=large, execution=model.execution, mesh=None,
        phases=(SimpleNamespace(rotary_base=1e4),),
    )  # fmt: skip
    data = SimpleNamespace(tokenizer=tokenizer, facts=facts, held_out={"a": None}, counts_of="training text")
    held_out.held_out_evaluators(assembly, data)[0].run(params, 0)
    assert set(seen[0].ordinary_ids) == set(range(SIZE)) - set(SPECIAL)
    monkeypatch.undo()
    wide = jax.tree.map(np.asarray, init_params(large, 0))
    step = make_evaluation_step(MaskedLM(large, model.execution), seen[0], COUNTS, PIECE_BYTES, LENGTH)
    narrow = make_evaluation_step(model, MASKING, COUNTS, PIECE_BYTES, LENGTH)
    figures = [evaluate_held_out(*which, batches(rows, ROWS)) for which in ((step, wide), (narrow, params))]
    assert figures[0]["unigram_loss"] == figures[1]["unigram_loss"]


def test_batches_are_sharded_first(step, params, rows):
    placed = []

    def shard(batch):
        placed.append(batch["row_index"].tolist())
        return jax.device_put(batch)

    assert evaluate_held_out(step, params, batches(rows, 8), shard) == evaluate_held_out(step, params, batches(rows, 8))
    assert placed == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, *[-1] * 6]]


@pytest.mark.slow
def test_logits_in_pieces_give_the_same_figures(model, step, params, rows):
    small = jit(make_evaluation_step(model, MASKING, COUNTS, PIECE_BYTES, LENGTH, most_bytes=3 * 4 * SIZE).function)
    whole, pieces = (evaluate_held_out(evaluate, params, batches(rows, 5)) for evaluate in (step, small))
    assert pieces == pytest.approx(whole, rel=1e-5)
