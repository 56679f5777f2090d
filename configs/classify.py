"""Fine-tune an encoder on labelled sentences or pairs: sequence classification with packed examples.

command:  jaxlm train --config=configs/classify.py --config.init_from=runs/quickstart --workdir=runs/sst2 \
            --config.task.train=GLUE/SST-2/train.tsv --config.task.evaluation=GLUE/SST-2/dev.tsv
hardware: 2 CPU cores
result:   not measured yet
"""

from jaxlm.config import default_config


def get_config():
    config = default_config()
    config.train.update(objective="classify", epochs=3.0, batch_size=32)
    config.task.update(text=("sentence",), label="label")
    config.model.update(dropout=0.1, attention_dropout=0.1)
    config.optimizer.update(learning_rate=3e-4, weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="linear", warmup=0.1)
    config.evaluation.every = 1000
    config.checkpoint.every = 1000
    config.logging.every = 50
    return config
