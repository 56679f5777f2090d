"""The config that the experiments in this folder start from: the speedrun's model and data without its other changes.

hardware: 2 CPU cores
result:   not a recipe; the experiments say what they found
"""

from jaxlm.config import default_config


def get_config():
    config = default_config()
    config.data.path = ("corpus_en/train.jsonl",)
    config.data.held_out = ("valid=corpus_en/valid.jsonl",)
    config.tokenizer.vocab_size = 8192
    config.model.update(
        layers=4, width=256, heads=4, feed_forward_width=1024, activation="relu_squared", positions="rotary",
        embedding_norm=True, head_transform=False, tied_output=True, output_bias_from_frequencies=True,
        initialization="zero_output",
    )  # fmt: skip
    config.train.update(steps=200, batch_size=32)
    config.masking.rate = 0.15
    config.optimizer.update(name="muon", learning_rate=6e-3, muon_learning_rate=0.03)
    config.schedule.warmup = 0.05
    config.evaluation.update(every=50, rows=512)
    config.checkpoint.every = 1000
    config.logging.update(every=10, tensorboard=False, curve=False)
    return config
