"""Continued pretraining on your own text, from a Hugging Face directory or a work directory of jaxlm.

command:  jaxlm train --config=configs/continue.py --workdir=runs/continue --config.init_from=DIR
          --config.data.path=FILES
hardware: 2 CPU cores
result:   not yet run
"""

from jaxlm.config import default_config
from jaxlm.settings import REQUIRED


def get_config():
    config = default_config()
    config.model.init_from = REQUIRED
    config.data.prepend_begin = True  # rows begin like inputs at inference
    config.model.output_bias_from_frequencies = True  # for a new head, if the checkpoint has none
    config.masking.update(scheme="token", rate=0.3)
    config.train.epochs = 1.0
    # The weights are trained already: a tenth of a pretraining rate, with a new warm-up and a linear decay.
    config.optimizer.learning_rate = 1e-4
    config.schedule.update(name="linear", warmup=0.1)
    return config
