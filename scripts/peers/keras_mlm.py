"""Times a masked-LM training step of KerasHub's BERT on JAX, on JAX's default device.

    python scripts/peers/keras_mlm.py --layers=4 --width=256 --batch=32 --length=128 --bf16

One step is `train_on_batch` of a compiled BertMaskedLM: loss at the masked tokens only, gradients clipped at norm 1,
AdamW, dropout 0.1. Each row is one full document. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import keras_hub
import numpy as np


def main() -> None:
    """Prints the median seconds per step, the device and the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 4, "width": 256, "heads": 4, "feed-forward": 1024, "vocab": 30_522, "batch": 32, "length": 128}
    for name, default in (sizes | {"steps": 5, "warmup": 2}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=0.15, help="share of the tokens that are predicted")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true", help="use the policy mixed_bfloat16")
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    if args.bf16:
        keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    encoder = keras_hub.models.BertBackbone(
        vocabulary_size=args.vocab, num_layers=args.layers, num_heads=args.heads, hidden_dim=args.width,
        intermediate_dim=args.feed_forward, dropout=args.dropout, max_sequence_length=max(512, args.length),
    )  # fmt: skip
    model = keras_hub.models.BertMaskedLM(encoder, preprocessor=None)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0), weighted_metrics=[],
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (args.batch, args.length)
    tokens = rng.integers(5, args.vocab, shape, np.int32)
    positions = np.sort(rng.random(shape).argsort(1)[:, : int(args.rate * args.length)], axis=1).astype(np.int32)
    labels = np.take_along_axis(tokens, positions, 1)
    np.put_along_axis(tokens, positions, 4, 1)
    inputs = {
        "token_ids": tokens, "segment_ids": np.zeros(shape, np.int32), "padding_mask": np.ones(shape, bool),
        "mask_positions": positions,
    }  # fmt: skip

    def step() -> float:
        begin = time.perf_counter()
        float(model.train_on_batch(inputs, labels))
        return time.perf_counter() - begin

    seconds = [step() for _ in range(args.warmup + args.steps)][args.warmup :]
    print(json.dumps({
        "step_seconds": statistics.median(seconds),
        "seconds": seconds,
        "parameters": model.count_params(),
        "device": jax.devices()[0].device_kind,
        "versions": {"keras": keras.__version__, "keras-hub": keras_hub.__version__, "jax": jax.__version__},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
