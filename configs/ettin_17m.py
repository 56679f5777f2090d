"""Ettin's encoder of 17 million parameters (7 layers of width 256): ModernBERT's recipe on public text, in 3 phases.

command:  jaxlm train --config=configs/ettin_17m.py --workdir=runs/ettin_17m
hardware: none yet; published on 4 H100, 141 hours
result:   not yet run
source:   Weller et al. 2025, arXiv 2507.11412; settings from JHU-CLSP/ettin-encoder-vs-decoder, very_tiny
differs:  AdamW instead of StableAdamW. The learning rate decays once, over the last 300 billion tokens, to 2%; the
          published one decays to half over 250 billion, then to 2% over 50. Rows are packed; a published batch has
          4,608 unpacked documents of up to 1,024 tokens, then up to 7,999 (here 576 rows of 8,192). The batch size
          grows in 7 steps over the first 125 billion tokens, not by single rows. Local layers have rotary base 160,000
          throughout; published so in the last phase only. No dropout; published with 0.1 on the attention output.
          SentencePiece BPE with byte fallback instead of ModernBERT's tokenizer unless tokenizer.path is set. The text
          is not included: set data.path, which is the same in all phases.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config():
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), sequence_length=1024, prepend_begin=True)
    config.tokenizer.update(algorithm="bpe", vocab_size=50_285, byte_fallback=True)  # 83 of 50,368 entries are unused
    config.model.update(PRESETS["ettin_17m"])
    config.masking.rate = 0.3

    small, full, long = 576 * 1024, 4608 * 1024, 576 * 8192  # tokens per batch
    ramp_steps = round(125e9 / (sum(range(1, 8)) * small))  # updates per batch size
    ramp = [{"steps": ramp_steps, "batch_size": 576 * n, "accumulate": n, "rotary_base": 1e4} for n in range(1, 8)]
    extension = {"sequence_length": 8192, "batch_size": 576, "accumulate": 8}
    config.train.tokens = 1_700e9 + 250e9 + 50e9
    config.train.phases = (
        *ramp,
        {"steps": round((1_700e9 - 125e9) / full), "batch_size": 4608, "accumulate": 8, "rotary_base": 1e4},
        extension | {"steps": round(250e9 / long)},
        extension | {"mask_rate": 0.15},
    )
    config.train.batch_size = 4608
    config.evaluation.batch_size = 128
    # Published as 3e-4, not multiplied by the learning rate.
    config.optimizer.update(learning_rate=3e-3, beta2=0.98, epsilon=1e-6, weight_decay=3e-4 / 3e-3, clip_norm=0.0)
    warmup, decay = round(4e9 / small), round(300e9 / long)
    config.schedule.update(name="wsd", warmup=warmup, decay_steps=decay, decay_shape="1-sqrt", final=0.02)
    return config
