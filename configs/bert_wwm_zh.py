"""BERT-wwm, Chinese: BERT-base with whole-word masking; rows of 128 tokens, then 512.

command:  jaxlm train --config=configs/bert_wwm_zh.py --workdir=runs/bert_wwm_zh
variants: :mini has 4 layers of width 256 and trains on 1 or 2 MB of text in about ten minutes on 2 CPU cores
hardware: none yet; published on a TPU v3
result:   not yet run
source:   Cui et al. 2019, arXiv 1906.08101; steps, batches and LAMB also in ymcui/Chinese-BERT-wwm
differs:  random initial weights; the published run started from Google's Chinese BERT. No next-sentence prediction, so
          no sentence pairs. Words are segmented by jieba instead of LTP. SentencePiece with at most one Chinese
          character per piece instead of BERT's vocabulary unless tokenizer.path is set. One schedule (warm-up and
          decay) over both phases. Settings that the report omits (betas, epsilon, weight decay, clipping) are BERT's.
          Chinese Wikipedia is not included: set data.path.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config(arg=None):
    if arg not in (None, "mini"):
        raise ValueError(f"there is no variant {arg}; the only one is mini")
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), prepend_begin=True)
    config.tokenizer.update(vocab_size=21_128, words="jieba", split_han=True)
    config.masking.scheme = "whole_word"
    if arg == "mini":
        return shrink(config)
    config.model.update(PRESETS["bert_base"], vocab_size=21_128)
    config.train.steps = 200_000
    config.train.update(batch_size=2560, accumulate=4)
    config.train.phases = ({"steps": 100_000}, {"sequence_length": 512, "batch_size": 384})
    config.evaluation.batch_size = 256
    config.optimizer.update(
        name="lamb", learning_rate=1e-4, beta2=0.999, epsilon=1e-6, weight_decay=0.01, clip_norm=1.0
    )  # fmt: skip
    config.schedule.update(name="linear", warmup=10_000)
    return config


def shrink(config):
    """Returns the config with a small vocabulary and a small, fast-learning model, for a small text."""
    config.tokenizer.vocab_size = 4700
    config.model.update(
        layers=4, width=256, heads=4, feed_forward_width=1024, activation="relu_squared", positions="rotary",
        embedding_norm=True, first_norm=False, head_transform=False, tied_output=False,
        output_bias_from_frequencies=True, initialization="zero_output",
    )  # fmt: skip
    config.train.update(minutes=9.0, batch_size=16)
    config.optimizer.update(name="muon", learning_rate=3e-3, muon_learning_rate=0.02)
    config.schedule.warmup = 0.05
    config.evaluation.every = 200
    config.checkpoint.every = 200
    return config
