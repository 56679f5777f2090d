"""Go on training a model on your own text: a Hugging Face checkpoint, or a work directory of jaxlm.

command:  jaxlm train --config=configs/continue.py --workdir=runs/continue --config.init_from=DIR
          --config.data.path=FILES
hardware: 2 CPU cores
result:   not yet run
"""

from jaxlm.config import default_config


def get_config():
    config = default_config()
    config.data.prepend_begin = True  # rows begin as texts will at inference
    config.model.output_bias_from_frequencies = True  # of a fresh head, where the checkpoint has none
    config.masking.update(scheme="token", rate=0.3)
    config.train.epochs = 1.0
    # The weights know much already: a tenth of a pretraining rate, warmed up again, and no decay to zero in one jump.
    config.optimizer.learning_rate = 1e-4
    config.schedule.update(name="linear", warmup=0.1)
    return config
