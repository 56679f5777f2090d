"""Fine-tune an encoder on labelled examples: one setting for all kinds of tasks, with packed examples.

command:  jaxlm train --config=configs/finetune.py --workdir=runs/finetune --config.init_from=DIR
          --config.task.train=SST-2/train.tsv --config.task.evaluation=SST-2/dev.tsv
variants: :multi_label, :regression, :span
hardware: 2 CPU cores
result:   not yet run
"""

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.settings import REQUIRED

KINDS = ("classification", "multi_label", "regression", "span")
LENGTHS = {"span": 384}  # of kinds whose texts are long


def get_config(arg=None):
    arg = arg or "classification"
    if arg not in KINDS:
        raise UserError(f"finetune:{arg} is not known; it can be {', '.join(KINDS)}")
    config = default_config()
    config.model.init_from = REQUIRED
    config.data.sequence_length = LENGTHS.get(arg, config.data.sequence_length)
    config.train.update(objective=arg, epochs=3.0, batch_size=32)
    config.model.update(dropout=0.1, attention_dropout=0.1)
    config.optimizer.update(learning_rate=5e-5, weight_decay=0.01, beta2=0.999, clip_norm=1.0)
    config.schedule.update(name="linear", warmup=0.1)
    config.evaluation.per_epoch = 2.0
    config.checkpoint.every = 1000
    config.logging.every = 50
    return config
