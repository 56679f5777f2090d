"""RoBERTa-base: BERT with larger batches, longer training, rows of 512 tokens and no next-sentence prediction.

command:  jaxlm train --config=configs/roberta_base.py --workdir=runs/roberta_base
hardware: none yet; published on V100s of 32 GB
result:   not yet run
source:   Liu et al. 2019, arXiv 1907.11692, table 9; weight decay mask from facebookresearch/fairseq
differs:  attention stays within a document; in the published rows it crosses the ends of documents. SentencePiece BPE
          with byte fallback instead of GPT-2's byte-level BPE unless tokenizer.path is set. The 160 GB of text
          (BookCorpus, Wikipedia, CC-News, OpenWebText, Stories) are not included: set data.path.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config():
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), sequence_length=512, prepend_begin=True)
    config.tokenizer.update(algorithm="bpe", vocab_size=50_265, byte_fallback=True)
    config.model.update(PRESETS["roberta_base"])
    config.train.steps = 500_000
    config.train.update(batch_size=8192, accumulate=32)
    config.evaluation.batch_size = 256
    config.optimizer.update(learning_rate=6e-4, beta2=0.98, epsilon=1e-6, weight_decay=0.01, clip_norm=0.0)
    config.optimizer.decay_mask = (".=yes",)
    config.schedule.update(name="linear", warmup=24_000)
    return config
