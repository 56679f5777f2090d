import jax
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.data.rows import document_pieces
from jaxlm.data.token_store import StoreWriter
from jaxlm.evaluation.held_out import evaluate_held_out, make_prediction_sums
from jaxlm.evaluation.whole_documents import _masked, masked_batches
from jaxlm.model.config import encoder_config
from jaxlm.model.heads import MaskedLM, init_params
from jaxlm.objectives.masking import Masking, evaluation_masking

SIZE = 40
PAD, BEGIN, END, MASK = SPECIAL = (0, 1, 2, 3)
MASKING = evaluation_masking(Masking("span", 1.0, 0.0, 0.2, 10, MASK, SIZE, SPECIAL))
LENGTHS = (30, 3, 12, 64, 7, 22, 2, 41, 18, 5, 33, 9)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path_factory.mktemp("store") / "store", SIZE, "tokenizer", 128) as writer:  # several files
        for length in LENGTHS:
            words = random.integers(len(SPECIAL), SIZE, length - 2)
            writer.add(np.array([BEGIN, *words, END]), np.ones(length, bool), length)
    return writer.close()


@pytest.fixture(scope="module")
def model():
    section = default_config().model
    section.update(layers=1, width=16, heads=2, feed_forward_width=32, positions="learned")
    return MaskedLM(encoder_config(section, SIZE))


@pytest.fixture(scope="module")
def step(model):
    sums = make_prediction_sums(model, MASKING, np.ones(SIZE), np.ones(SIZE))
    return jax.jit(lambda params, batch: sums(params, **batch))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(lambda: jax.tree.map(lambda leaf: 10 * leaf, init_params(model.config, 0)))()


def metrics(step, params, store, length, rows=3, documents=0):
    batches = masked_batches(document_pieces(store, length, BEGIN, documents), MASKING, length, rows, PAD)
    return evaluate_held_out(step, params, batches)


def test_a_document_is_whole_if_it_fits_and_cut_otherwise(store):
    pieces = list(document_pieces(store, 32, BEGIN))
    assert store.document_lengths().tolist() == list(LENGTHS)
    expected = [(n, k) for n, length in enumerate(LENGTHS) for k in range({64: 3, 41: 2, 33: 2}.get(length, 1))]
    assert [(piece.document, piece.number) for piece in pieces] == expected
    assert all(piece.tokens[0] == BEGIN and len(piece.tokens) <= 32 for piece in pieces)
    for number, length in enumerate(LENGTHS):
        own = [piece.tokens if piece.number == 0 else piece.tokens[1:] for piece in pieces if piece.document == number]
        assert np.concatenate(own).tolist() == store.document(number).tolist()
        assert len(np.concatenate(own)) == length
    assert [piece.document for piece in document_pieces(store, 64, BEGIN, 2)] == [0, 1]


@pytest.mark.slow
def test_the_figures_do_not_depend_on_the_rows(step, params, store):
    figures = [metrics(step, params, store, *how) for how in ((64, 3), (100, 4), (512, 1))]
    assert figures[0]["n"] == pytest.approx(0.15 * sum(length - 2 for length in LENGTHS), abs=len(LENGTHS))
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)


@pytest.mark.slow
def test_a_documents_loss_is_that_of_the_document_alone(model, step, params, store):
    apply = jax.jit(
        lambda tokens, segment_ids: jax.nn.log_softmax(model.apply({"params": params}, tokens, segment_ids))
    )
    loss = count = 0.0
    for piece in _masked(list(document_pieces(store, 64, BEGIN)), MASKING):
        fill = (0, 64 - len(piece.inputs))
        logits = apply(np.pad(piece.inputs, fill)[None], np.pad(np.ones_like(piece.inputs), fill)[None])[0]
        loss -= float(np.asarray(logits)[piece.positions, piece.labels].sum())
        count += len(piece.positions)
    result = metrics(step, params, store, 64)
    assert result["n"] == count
    assert result["loss"] == pytest.approx(loss / count, rel=1e-4)


def test_masks_depend_on_the_document_alone(store):
    whole = _masked(list(document_pieces(store, 64, BEGIN)), MASKING)
    few = _masked(list(document_pieces(store, 64, BEGIN, 4)), MASKING)
    for one, other, number in zip(few, whole, range(4), strict=False):
        assert one.inputs.tolist() == other.inputs.tolist()
        tokens = store.document(number)
        assert tokens[one.positions].tolist() == one.labels.tolist()
        unchanged = np.setdiff1d(np.arange(len(tokens)), one.positions)
        assert one.inputs[unchanged].tolist() == tokens[unchanged].tolist()
        assert not set(one.labels.tolist()) & set(SPECIAL)


def test_documents_are_packed(store):
    (batch,) = masked_batches(document_pieces(store, 64, BEGIN), MASKING, 64, 4, PAD)
    assert batch["inputs"].shape == (4, 64)  # 246 tokens
    assert (batch["segment_ids"] > 0).sum() == sum(LENGTHS)
    rows = np.take_along_axis(batch["segment_ids"], batch["masked_positions"], axis=1)
    assert (rows[batch["weights"] > 0] > 0).all()
    assert batch["weights"].shape[1] <= 16


def test_without_a_document_there_is_no_batch():
    assert list(masked_batches([], MASKING, 64, 4, PAD)) == []
