"""The lowest held-out loss after five minutes of training on two CPU cores.

command:  jaxlm train --config=configs/speedrun.py --workdir=runs/speedrun
hardware: 2 CPU cores, an Intel Xeon with AMX
result:   held-out loss 3.876 nats (3.872, 3.844, 3.912 with three seeds), accuracy 34.0%, 0.968 nats per byte
          (unigram baseline 6.951), about 1,100 updates, compilation included, 2026-11-26; experiments are in
          experiments/LOG.md
export:   not possible: no family of Transformers has model.value_residual and model.first_norm, which lower the loss
"""

from jaxlm.config import default_config


def get_config():
    config = default_config()
    config.data.path = ("corpus_en/train.jsonl",)
    config.data.held_out = ("valid=corpus_en/valid.jsonl",)
    config.tokenizer.vocab_size = 8192
    config.model.update(
        layers=4, width=256, heads=4, feed_forward_width=1024, activation="relu_squared", positions="rotary",
        embedding_norm=True, first_norm=True, head_transform=False, tied_output=True,
        output_bias_from_frequencies=True, initialization="zero_output", value_residual=0.5,
    )  # fmt: skip
    config.train.minutes = 5.0
    config.train.count_compilation = True
    config.train.batch_size = 32
    short = {"sequence_length": 64, "batch_size": 64}
    config.train.phases = ({"steps": 100, "objective": "causal", **short}, {"steps": 400, **short}, {})
    config.masking.update(rate=0.4, final_rate=0.15)
    config.optimizer.update(name="muon", learning_rate=6e-3, muon_learning_rate=0.03)
    config.schedule.warmup = 0.05
    config.evaluation.every = 0
    config.checkpoint.every = 1000
    return config
