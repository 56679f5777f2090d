"""MosaicBERT-base: BERT with ALiBi and gated feed-forward layers, 30% masking, rows of 128 tokens.

command:  jaxlm train --config=configs/mosaicbert_base.py --workdir=runs/mosaicbert_base
hardware: none yet; published on 8 A100 of 80 GB
result:   not yet run
source:   Portes et al. 2023, arXiv 2312.17482; epsilon, final rate and weight decay mask from mosaicml/examples
differs:  the gate and up projections have biases, which the published model lacks (73,728 of 137 million parameters).
          Rows are packed from whole documents; the published ones are the first 128 tokens of a document. SentencePiece
          instead of BERT's WordPiece unless tokenizer.path is set. C4 is not included: set data.path.
export:   not possible: no family of Transformers has model.positions=alibi, nor a BERT with model.activation=geglu
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config():
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), sequence_length=128, prepend_begin=True)
    config.tokenizer.update(vocab_size=30_522, lower_case=True)
    config.model.update(PRESETS["mosaicbert_base"])
    config.masking.rate = 0.3
    config.train.steps = 70_000
    config.train.update(batch_size=4096, accumulate=4)
    config.evaluation.batch_size = 512
    # Published as 1e-5, not multiplied by the learning rate.
    config.optimizer.update(learning_rate=5e-4, beta2=0.98, epsilon=1e-6, weight_decay=1e-5 / 5e-4, clip_norm=0.0)
    config.optimizer.decay_mask = (".=yes",)
    config.schedule.update(name="linear", warmup=0.06, final=0.02)
    return config
