"""A training loop of your own: adapts the biases of a model to a few lines of text (BitFit, arXiv 2106.10199).

    python examples/own_training_loop.py --model=DIR --lines=notes.txt

`Model.logits` is a function of the parameters that JAX differentiates and compiles, so the loss, the optimizer and the
choice of parameters are up to you. `jaxlm.train` is faster, resumes, and saves what it has trained.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlm


def batches(model: jaxlm.Model, texts: list[str], count: int, rows: int, length: int, rate: float):
    """Yields `count` batches of inputs, labels and segment ids int32 [B, L]; labels are -1 where no token is masked."""
    random = np.random.default_rng(0)
    encoded = [model.tokenize(text)[:length] for text in texts]
    for _ in range(count):
        labels = np.full((rows, length), -1, np.int32)
        inputs = np.full((rows, length), model.tokenizer.pad_id, np.int32)
        segment_ids = np.zeros((rows, length), np.int32)
        for row, number in enumerate(random.integers(len(encoded), size=rows)):
            tokens = encoded[number]
            masked = 1 + random.permutation(len(tokens) - 2)[: max(1, round(rate * (len(tokens) - 2)))]
            inputs[row, : len(tokens)], segment_ids[row, : len(tokens)] = tokens, 1
            inputs[row, masked], labels[row, masked] = model.tokenizer.mask_id, tokens[masked]
        yield inputs, labels, segment_ids


def is_bias(path: tuple) -> bool:
    return path[-1].key == "bias"


def main() -> None:
    parser = argparse.ArgumentParser(description="Adapt the biases of a model to the lines of a file.")
    parser.add_argument("--model", required=True, help="the directory of a model")
    parser.add_argument("--lines", required=True, type=Path, help="a text file")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()

    model = jaxlm.load(args.model)
    texts = [line for line in args.lines.read_text().splitlines() if line.strip()]
    labelled = jax.tree_util.tree_map_with_path(lambda path, _: "bias" if is_bias(path) else "frozen", model.params)
    optimizer = optax.multi_transform({"bias": optax.adam(3e-3), "frozen": optax.set_to_zero()}, labelled)

    def loss(params, inputs, labels, segment_ids):
        logits = model.logits(inputs, segment_ids, params=params)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return losses.mean(where=labels >= 0)

    @jax.jit
    def update(params, state, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state, value

    params, state, losses = model.params, optimizer.init(model.params), []
    for batch in batches(model, texts, args.steps, rows=16, length=min(64, model.longest), rate=0.15):
        params, state, value = update(params, state, *batch)
        losses.append(float(value))
    tenth = max(1, len(losses) // 10)
    print(
        f"nats per masked token: {np.mean(losses[:tenth]):.3f} at the start, {np.mean(losses[-tenth:]):.3f} at the end"
    )


if __name__ == "__main__":
    main()
