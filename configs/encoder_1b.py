"""Ettin's largest encoder, a billion parameters (28 layers of width 1,792), in three phases on 256 accelerators.

command:  jaxlm train --config=configs/encoder_1b.py --workdir=runs/encoder_1b --config.mesh.fsdp=16
hardware: none yet; planned for 256 TPU v5e or v5p (docs/scale.md)
result:   not yet run
source:   Weller et al. 2025, arXiv 2507.11412; settings from JHU-CLSP/ettin-encoder-vs-decoder, huge
differs:  AdamW instead of StableAdamW. Batches of 4,096 rows of 1,024 tokens, then 512 of 8,192, which 256 accelerators
          divide; published with 4,608 rows in both. Phases as long as in configs/ettin_17m.py, with a single decay of
          the learning rate. The batch size grows in 3 steps over the first 3 billion tokens, not by single rows. Local
          layers have rotary base 160,000 throughout; published so in the last phase only. No dropout; published with
          0.1 on the attention output. Layers are recomputed in the backward pass (train.rematerialise) to save memory.
          SentencePiece BPE with byte fallback instead of ModernBERT's tokenizer unless tokenizer.path is set. The text
          is not included: set data.path, which is the same in all phases.
"""

from jaxlm.config import default_config
from jaxlm.model.presets import PRESETS


def get_config():
    config = default_config()
    config.data.update(path=("corpus/*.jsonl",), sequence_length=1024, prepend_begin=True)
    config.tokenizer.update(algorithm="bpe", vocab_size=50_285, byte_fallback=True)  # 83 of 50,368 entries are unused
    config.model.update(PRESETS["ettin_1b"])
    config.masking.rate = 0.3

    small, full, long = 1024 * 1024, 4096 * 1024, 512 * 8192  # tokens per batch
    ramp_steps = round(3e9 / ((1 + 2 + 3) * small))  # updates per batch size
    ramp = [{"steps": ramp_steps, "batch_size": 1024 * n, "accumulate": n, "rotary_base": 1e4} for n in (1, 2, 3)]
    extension = {"sequence_length": 8192, "batch_size": 512, "accumulate": 2}
    config.train.tokens = 1_700e9 + 250e9 + 50e9
    config.train.phases = (
        *ramp,
        {"steps": round((1_700e9 - 3e9) / full), "batch_size": 4096, "accumulate": 4, "rotary_base": 1e4},
        extension | {"steps": round(250e9 / long)},
        extension | {"mask_rate": 0.15},
    )
    config.train.update(batch_size=4096, rematerialise="full")
    config.evaluation.batch_size = 256
    # Published as 5e-5, not multiplied by the learning rate.
    config.optimizer.update(learning_rate=5e-4, beta2=0.98, epsilon=1e-6, weight_decay=5e-5 / 5e-4, clip_norm=0.0)
    # The warm-up lasts 2 billion tokens: the first two batch sizes and a part of the third.
    warmup = 2 * ramp_steps + round((2e9 - (1 + 2) * ramp_steps * small) / (3 * small))
    decay = round(300e9 / long)
    config.schedule.update(name="wsd", warmup=warmup, decay_steps=decay, decay_shape="1-sqrt", final=0.02)
    return config
