"""BERT-large, uncased English: rows of 128 tokens for 90% of the updates, then 512.

command:  jaxlm train --config=configs/bert_large.py --workdir=runs/bert_large
variants: :wwm masks whole words, like the model that Google released in May 2019
hardware: none yet; published on 16 Cloud TPUs (64 chips), 4 days
result:   not yet run
source:   Devlin et al. 2018, arXiv 1810.04805; epsilon, clipping and weight decay mask from google-research/bert
differs:  no next-sentence prediction, so no sentence pairs: rows are packed, and attention stays within a document.
          Masks are drawn for each pass, not ten times in advance. Adam uses bias correction. SentencePiece instead of
          WordPiece unless tokenizer.path is set. Wikipedia and BooksCorpus are not included: set data.path.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config(arg=None):
    if arg not in (None, "wwm"):
        raise ValueError(f"there is no variant {arg}; the only one is wwm")
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), prepend_begin=True)
    config.tokenizer.update(vocab_size=30_522, lower_case=True)
    config.model.update(PRESETS["bert_large"])
    config.masking.scheme = "whole_word" if arg == "wwm" else "token"
    config.train.steps = 1_000_000
    config.train.batch_size = 256
    config.train.phases = ({"steps": 900_000}, {"sequence_length": 512})
    config.optimizer.update(learning_rate=1e-4, beta2=0.999, epsilon=1e-6, weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="linear", warmup=10_000)
    return config
