"""Embeddings as an objective: who is a negative, chunks, packing, Matryoshka dimensions, and losses of similarities."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import Phase, default_config
from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.examples import Examples
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.objectives.contrastive import contrastive_losses, cosent_loss, negatives_mask
from jaxlm.objectives.embedding import EmbeddingObjective
from tests.conftest import ROOT

SIZE, SHAPE = 60, Shape(32, 8)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile


def make_objective(examples, task=None, accumulate=1, **model):
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=32, **model)
    config.task.update(task or {})
    encoder = encoder_config(config.model, SIZE)
    phase = Phase(None, SHAPE.length, examples, accumulate, objective="embedding")
    return EmbeddingObjective.from_config(config, phase, encoder, Execution(), SYNTHETIC_FACTS)


def make_batch(numbers, rows=None, similarities=None, order=None):
    """Returns a packed batch. `numbers` [U][K] number the texts of each example: equal numbers are equal texts."""
    texts = {n: np.random.default_rng(n).integers(5, SIZE, 4 + n % 7).astype(np.int32) for of in numbers for n in of}
    flat = [(example, role, n) for example, of in enumerate(numbers) for role, n in enumerate(of)]
    example, role, number = (np.array(column) for column in zip(*flat, strict=True))
    columns = {"role": role.astype(np.int32), "text": number.astype(np.int32)}
    if similarities is not None:
        columns |= {"labels": np.array(similarities, np.float32)[example], "weights": np.ones(len(flat), np.float32)}
    tokens = [texts[n] for n in number.tolist()]
    examples = Examples([None] * len(numbers), tokens, [np.zeros_like(t) for t in tokens], columns, example=example)
    layout = lay_out(examples, examples.segments_of(order or range(len(numbers))), SHAPE)
    return fill_rows(examples, layout, SHAPE, rows or layout.row_count, 0)


def grown(objective):
    return jax.tree.map(lambda leaf: 10 * leaf, jit(lambda: objective.init(0))())


def loss_and_gradient(objective, params, batch, seeds=None):
    def loss(params):
        return objective.sums(params, objective.prepare(batch, None, {}).rows, seeds)["loss"]

    return jit(jax.value_and_grad(loss))(params)


def assert_equal(first, second, rtol=1e-4):
    np.testing.assert_allclose(first[0], second[0], rtol=rtol)
    for one, other in zip(jax.tree.leaves(first[1]), jax.tree.leaves(second[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * float(np.abs(other).max() + 1e-3))


def test_a_text_that_belongs_to_the_anchor_is_no_negative():
    q1, q2, d, e, hard = 1, 2, 3, 4, 5
    texts = jnp.array([[q1, d, hard], [q2, d, 0], [q1, e, q1]])
    exists = jnp.array([[True, True, True], [True, True, False], [True, True, True]])
    found = np.asarray(negatives_mask(texts, exists)).astype(int)
    # From the anchor q1 of example 0: d and e are its positives, `hard` is a negative, and q1 is the anchor itself.
    assert found[0].tolist() == [[0, 1], [0, 0], [0, 0]]
    # From q2: its positive is d, which is also that of example 0.
    assert found[1].tolist() == [[0, 1], [0, 0], [1, 1]]
    assert found[2].tolist() == found[0].tolist()


def test_the_loss_of_equal_texts_is_computed_by_hand():
    vectors = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    vectors[1, 1], vectors[2, 0] = vectors[0, 1], vectors[0, 0]
    texts, exists = jnp.array([[1, 3], [2, 3], [1, 4]]), jnp.ones((3, 2), bool)  # (q1, d), (q2, d), (q1, e)
    losses, _ = contrastive_losses(jnp.asarray(vectors), texts, exists, 0.5, symmetric=True)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    q, d = np.moveaxis(vectors / length, 1, 0)
    s = q @ d.T / 0.5
    # The only text that is no one's positive for q2 is e, and for e the only other anchor is q2.
    forward = [0, np.logaddexp(s[1, 1], s[1, 2]) - s[1, 1], 0]
    backward = [0, 0, np.logaddexp(s[2, 2], s[1, 2]) - s[2, 2]]
    np.testing.assert_allclose(losses, (np.array(forward) + backward) / 2, atol=1e-5)
    forward_only, _ = contrastive_losses(jnp.asarray(vectors), texts, exists, 0.5, symmetric=False)
    np.testing.assert_allclose(forward_only, forward, atol=1e-5)


NUMBERS = [[1, 11, 21], [2, 12], [3, 13, 23], [4, 14], [5, 12, 25], [6, 16], [7, 17], [1, 18, 21]]


@pytest.mark.slow
def test_a_batch_in_chunks_is_the_batch_with_the_same_dropout():
    task = {"negatives": ("hard",)}
    batch = make_batch(NUMBERS, 8)
    seeds = np.arange(16, dtype=np.uint32).reshape(8, 2)
    whole = make_objective(8, task, dropout=0.1, attention_dropout=0.1)
    chunked = make_objective(8, task, accumulate=4, dropout=0.1, attention_dropout=0.1)
    params = grown(whole)
    assert chunked.chunks == 4
    assert_equal(loss_and_gradient(chunked, params, batch, seeds), loss_and_gradient(whole, params, batch, seeds))


@pytest.mark.slow
def test_packing_and_the_order_of_examples_change_nothing():
    objective = make_objective(8, {"negatives": ("hard",)})
    params = grown(objective)
    packed, padded = make_batch(NUMBERS), make_batch(NUMBERS, 12, order=[3, 0, 7, 6, 1, 2, 5, 4])
    assert len(packed["tokens"]) < 12
    losses = [float(jit(objective.sums)(params, batch, None)["loss"]) for batch in (packed, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@dataclasses.dataclass(frozen=True)
class FixedModel:
    """Stands for a model with these vectors, float32 [B, S, D]."""

    vectors: np.ndarray

    def apply(self, *args):
        return jnp.asarray(self.vectors)


def sums_of(objective, batch):
    shape = (*batch["role"].shape, objective.dimensions[-1])
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return dataclasses.replace(objective, model=FixedModel(vectors)).sums({}, batch, None)


def test_dimensions_in_any_order_are_the_same_loss():
    batch = make_batch(NUMBERS)
    losses = {}
    for sizes in [(4, 8), (8, 4), (8, 4, 16), (), (4,), (8,)]:
        objective = make_objective(8, {"dimensions": sizes, "negatives": ("hard",)})
        losses[sizes] = float(sums_of(objective, batch)["loss"])
    assert losses[4, 8] == losses[8, 4] == losses[8, 4, 16]
    # Each is the mean of the losses of the first 4, the first 8, and all dimensions.
    expected = (2 * losses[4,] - losses[()]) + (2 * losses[8,] - losses[()]) + losses[()]
    assert losses[4, 8] == pytest.approx(expected / 3, rel=1e-5)
    assert losses[4, 8] != pytest.approx(losses[()], rel=1e-3)
    with pytest.raises(UserError, match=r"task\.dimensions=17: must be from 1 to 16, the width of the model"):
        make_objective(8, {"dimensions": (8, 17)})


@pytest.mark.parametrize("loss", ["cosent", "cosine_mse"])
def test_pairs_without_a_similarity_count_for_nothing(loss):
    batch = make_batch([of[:2] for of in NUMBERS], similarities=np.linspace(0, 1, 8))
    objective = make_objective(8, {"loss": loss})
    assert float(objective.prepare(batch, None, {}).weight) == 8
    assert float(sums_of(objective, batch)["weight"]) == 8
    last = batch["examples"] == 7
    found = []
    for label in (0.0, 5.0):
        changed = batch | {
            "weights": np.where(last, 0, batch["weights"]), "labels": np.where(last, label, batch["labels"])
        }  # fmt: skip
        found.append(sums_of(objective, changed))
    assert float(found[0]["loss"]) == float(found[1]["loss"])
    assert float(found[0]["weight"]) == 7


GOLDEN = json.loads((ROOT / "tests" / "golden" / "embedding_losses.json").read_text())


@pytest.mark.parametrize("name", list(GOLDEN["losses"]))
def test_losses_are_those_of_sentence_transformers(name):
    vectors = jnp.asarray(GOLDEN["vectors"])  # [U, 3, D]: anchor, positive, hard negative
    count = len(vectors)
    exists = jnp.ones((count, 3), bool)
    texts = jnp.arange(3 * count).reshape(count, 3)
    if name == "cosent":
        found = (vectors[:, 0] * vectors[:, 1]).sum(-1)
        found /= jnp.linalg.norm(vectors[:, 0], axis=-1) * jnp.linalg.norm(vectors[:, 1], axis=-1)
        loss = cosent_loss(found, jnp.asarray(GOLDEN["similarities"]), jnp.ones(count, bool), 0.05)
    else:
        kept = 2 if "symmetric" in name else 3
        losses, _ = contrastive_losses(
            vectors[:, :kept], texts[:, :kept], exists[:, :kept], 0.05, symmetric="symmetric" in name
        )
        loss = losses.mean()
    assert float(loss) == pytest.approx(GOLDEN["losses"][name], rel=1e-5)


@pytest.mark.slow
def test_two_devices_with_chunks_have_the_losses_of_one_without():
    results = []
    for devices in (1, 2):
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "objectives" / "embedding_on_mesh.py")],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    assert [result["devices"] for result in results] == [1, 2]
    np.testing.assert_allclose(results[1]["losses"], results[0]["losses"], rtol=1e-5)
    assert len(set(results[0]["losses"])) == 3
