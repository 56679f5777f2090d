"""ModernBERT-base: 1,719 billion tokens in rows of 1,024, then 250 and 50 billion in rows of 8,192.

command:  jaxlm train --config=configs/modernbert_base.py --workdir=runs/modernbert_base
hardware: none yet; published on 8 H100, 194 + 40 + 12 hours
result:   not yet run
source:   Warner et al. 2024, arXiv 2412.13663, table 3; batch sizes from AnswerDotAI/ModernBERT
differs:  AdamW instead of StableAdamW. The batch size grows in 5 steps over the first 50 billion tokens, not by single
          rows. No dropout; published with 0.1 on the attention output. The result is the last model, not a mean of
          four. SentencePiece BPE with byte fallback instead of the modified OLMo tokenizer unless tokenizer.path is
          set. The text is not public: set data.path, which is the same in all phases.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config():
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), sequence_length=1024, prepend_begin=True)
    config.tokenizer.update(algorithm="bpe", vocab_size=50_285, byte_fallback=True)  # 83 of 50,368 entries are unused
    config.model.update(PRESETS["modernbert_base"])
    config.masking.rate = 0.3

    small, full, long = 768 * 1024, 4608 * 1024, 576 * 8192  # tokens per batch
    ramp_steps = round(50e9 / (sum(range(1, 6)) * small))  # updates per batch size
    ramp = [{"steps": ramp_steps, "batch_size": 768 * n, "accumulate": n, "rotary_base": 1e4} for n in range(1, 6)]
    config.train.tokens = 1_719e9 + 250e9 + 50e9
    config.train.phases = (
        *ramp,
        {"steps": round((1_719e9 - 50e9) / full), "batch_size": 4608, "accumulate": 6, "rotary_base": 1e4},
        {"sequence_length": 8192, "batch_size": 576, "accumulate": 6, "learning_rate": 3e-4},
    )
    config.train.batch_size = 4608
    config.evaluation.batch_size = 128
    # Published as 1e-5, not multiplied by the learning rate.
    config.optimizer.update(learning_rate=8e-4, beta2=0.98, epsilon=1e-6, weight_decay=1e-5 / 8e-4, clip_norm=0.0)
    warmup, decay = round(3e9 / small), round(50e9 / long)
    config.schedule.update(name="wsd", warmup=warmup, decay_steps=decay, decay_shape="1-sqrt")
    return config
