"""ModernBERT-large: 1,719 billion tokens in rows of 1,024, then 250 and 50 billion in rows of 8,192.

command:  jaxlm train --config=configs/modernbert_large.py --workdir=runs/modernbert_large
hardware: none yet; published on 8 H100, 425 + 81 + 22 hours
result:   not yet run
source:   Warner et al. 2024, arXiv 2412.13663, table 3; batch sizes by the rule in AnswerDotAI/ModernBERT
differs:  AdamW instead of StableAdamW. The learning rate stays at 5e-4 until the decay; the published run changed to
          5e-5 after 900 billion tokens, because the loss had stopped falling. Random initial weights; published from
          those of ModernBERT-base, tiled. The batch size grows in 10 steps over the first 10 billion tokens, not by
          single rows. No dropout; published with 0.1 on the attention output. SentencePiece BPE with byte fallback
          instead of the modified OLMo tokenizer unless tokenizer.path is set. The text is not public: set data.path,
          which is the same in all phases.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config():
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), sequence_length=1024, prepend_begin=True)
    config.tokenizer.update(algorithm="bpe", vocab_size=50_285, byte_fallback=True)  # 83 of 50,368 entries are unused
    config.model.update(PRESETS["modernbert_large"])
    config.masking.rate = 0.3

    small, full, long, last = 448 * 1024, 4928 * 1024, 616 * 8192, 624 * 8192  # tokens per batch
    ramp_steps = round(10e9 / (sum(range(1, 11)) * small))  # updates per batch size
    ramp = [{"steps": ramp_steps, "batch_size": 448 * n, "accumulate": n, "rotary_base": 1e4} for n in range(1, 11)]
    config.train.tokens = 1_719e9 + 250e9 + 50e9
    config.train.phases = (
        *ramp,
        {"steps": round((1_719e9 - 10e9) / full), "batch_size": 4928, "accumulate": 11, "rotary_base": 1e4},
        {"steps": round(250e9 / long), "sequence_length": 8192, "batch_size": 616, "accumulate": 11},
        {"sequence_length": 8192, "batch_size": 624, "accumulate": 13},
    )
    config.train.batch_size = 4928
    config.evaluation.batch_size = 128
    # Published as 1e-5, not multiplied by the learning rate.
    config.optimizer.update(learning_rate=5e-4, beta2=0.98, epsilon=1e-6, weight_decay=1e-5 / 5e-4, clip_norm=0.0)
    # The warm-up lasts 2 billion tokens: the first four batch sizes and a part of the fifth.
    warmup = 4 * ramp_steps + round((2e9 - (1 + 2 + 3 + 4) * ramp_steps * small) / (5 * small))
    config.schedule.update(name="wsd", warmup=warmup, decay_steps=round(50e9 / last), decay_shape="1-sqrt")
    return config
