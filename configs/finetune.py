"""Fine-tune an encoder on labelled examples: one setting for all tasks, or those that a model was published with.

command:  jaxlm train --config=configs/finetune.py --workdir=runs/finetune --config.init_from=DIR
          --config.task.train=SST-2/train.tsv --config.task.evaluation=SST-2/dev.tsv
variants: :multi_label, :regression, :tagging, :span, :embedding, :reranking, :choice, :template; a known task, whose
          folder task.data names: :cola, :sst2, :mrpc, :stsb, :qqp, :mnli, :qnli, :rte, :wnli, :sick_relatedness,
          :sick_entailment, :ag_news, :ag_news_original, :trecqa, :conll2003, :wnut17, :squad, :squad2
          finetune:TASK:MODEL has the published setting of bert, roberta, mosaicbert, modernbert or modernbert_large
hardware: 2 CPU cores
result:   not yet run
source:   one setting for all tasks (sane): Geiping and Goldstein 2022, arXiv 2212.14034, GLUE_sane in
          JonasGeiping/cramming; bert: Devlin et al. 2018, arXiv 1810.04805, section 4.1, and google-research/bert;
          roberta: Liu et al. 2019, arXiv 1907.11692, and examples/roberta in facebookresearch/fairseq; mosaicbert:
          Portes et al. 2023, arXiv 2312.17482, and src/glue in mosaicml/examples; modernbert: Warner et al. 2024,
          arXiv 2412.13663, appendix E.1 and table 6
differs:  A tenth of the training set selects the checkpoint; published by the set that is reported. BERT's learning
          rate is 2e-5; published as the best of 2e-5, 3e-5, 4e-5 and 5e-5 for each task. BERT's AdamW has bias
          correction. RoBERTa's values are those tested with RoBERTa-large. ModernBERT has the warm-up, betas, length
          and weight decay of all parameters from MosaicBERT's code, which it builds on; the paper does not give them.
          Dropout is that of the model which the run starts from.
"""

import difflib

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.settings import REQUIRED
from jaxlm.text.known_tasks import KNOWN_TASKS

KINDS = (
    "classification", "multi_label", "regression", "tagging", "span", "embedding", "reranking", "choice", "template"
)  # fmt: skip
TEXTS = {
    "embedding": ("anchor", "positive"), "reranking": ("query", "passage"), "choice": ("context",),
    "span": ("question", "context"),
}  # fmt: skip
LENGTHS = {"span": 384}  # of kinds whose texts are long

# By task: examples per batch, learning rate, epochs.
ROBERTA = {
    "mnli": (32, 1e-5, 10), "qnli": (32, 1e-5, 10), "qqp": (32, 1e-5, 10), "rte": (16, 2e-5, 10),
    "sst2": (32, 1e-5, 10), "mrpc": (16, 1e-5, 10), "cola": (16, 1e-5, 10), "stsb": (16, 2e-5, 10),
}  # fmt: skip
# By task: examples per batch, learning rate, epochs, and weight decay as published. Composer's decoupled AdamW does
# not multiply it by the learning rate.
MOSAICBERT = {
    "mnli": (48, 5e-5, 3, 5e-6), "qnli": (16, 1e-5, 10, 1e-6), "qqp": (16, 3e-5, 5, 3e-6), "rte": (16, 1e-5, 3, 1e-5),
    "sst2": (16, 3e-5, 3, 3e-6), "mrpc": (32, 8e-5, 10, 8e-6), "cola": (32, 5e-5, 10, 5e-6),
    "stsb": (32, 3e-5, 10, 3e-6),
}  # fmt: skip
MODERNBERT = {
    "mnli": (64, 5e-5, 1, 5e-6), "qnli": (64, 8e-5, 2, 5e-6), "qqp": (64, 5e-5, 10, 5e-6), "rte": (64, 5e-5, 3, 1e-5),
    "sst2": (64, 8e-5, 2, 1e-5), "mrpc": (64, 5e-5, 10, 5e-6), "cola": (64, 8e-5, 5, 1e-6),
    "stsb": (64, 8e-5, 10, 5e-6),
}  # fmt: skip
MODERNBERT_LARGE = {
    "mnli": (64, 3e-5, 1, 1e-5), "qnli": (64, 3e-5, 2, 5e-6), "qqp": (64, 5e-5, 2, 8e-6), "rte": (64, 5e-5, 3, 8e-6),
    "sst2": (64, 1e-5, 3, 1e-6), "mrpc": (64, 8e-5, 2, 5e-6), "cola": (64, 3e-5, 5, 8e-6),
    "stsb": (64, 8e-5, 10, 1e-5),
}  # fmt: skip
COMPOSER = {"mosaicbert": MOSAICBERT, "modernbert": MODERNBERT, "modernbert_large": MODERNBERT_LARGE}
MODELS = ("bert", "roberta", *COMPOSER)
FROM_MNLI = ("rte", "mrpc", "stsb")  # tasks that all but BERT start from a model fine-tuned on MNLI


def get_config(arg=None):
    task, _, model = (arg or "classification").partition(":")
    known = (*KINDS, *KNOWN_TASKS)
    if task not in known:
        near = difflib.get_close_matches(task.lower(), known, 1)
        raise UserError(
            f"finetune:{task} is not known; {f'did you mean {near[0]}? It' if near else 'it'} can be {', '.join(known)}"
        )
    config = sane()
    objective = task if task in KINDS else KNOWN_TASKS[task].objective
    config.train.objective = objective
    config.task.text = TEXTS.get(objective, config.task.text)
    config.data.sequence_length = LENGTHS.get(objective, config.data.sequence_length)
    if task in KNOWN_TASKS:
        config.task.update(name=task, **KNOWN_TASKS[task].settings)
    if model not in ("", "sane"):
        use_published(config, task, model)
    return config


def sane():
    config = default_config()
    config.model.init_from = REQUIRED
    config.train.update(epochs=5.0, batch_size=16)
    config.model.update(dropout=0.1, attention_dropout=0.1)
    config.optimizer.update(learning_rate=4e-5, weight_decay=0.0, beta2=0.98, epsilon=1e-6, clip_norm=0.0)
    config.schedule.update(name="cosine", warmup=0.1)
    config.evaluation.per_epoch = 2.0
    config.checkpoint.every = 1000
    config.logging.every = 50
    return config


def use_published(config, task, model):
    """Replaces the setting for all tasks by what a model was published with."""
    if model not in MODELS:
        raise UserError(f"finetune:{task}:{model}: {model} is not one of sane, {', '.join(MODELS)}")
    if task not in MOSAICBERT:
        raise UserError(f"finetune:{task}:{model}: settings are published for {', '.join(MOSAICBERT)}; remove :{model}")
    if model == "bert":
        config.train.update(epochs=3.0, batch_size=32)
        config.optimizer.update(learning_rate=2e-5, weight_decay=0.01, beta2=0.999, epsilon=1e-6, clip_norm=1.0)
        config.schedule.update(name="linear", warmup=0.1)
        return
    if model == "roberta":
        batch_size, rate, epochs = ROBERTA[task]
        decay, length = 0.1, 512
    else:
        batch_size, rate, epochs, published_decay = COMPOSER[model][task]
        decay, length = published_decay / rate, 256
    config.data.sequence_length = length
    config.train.update(epochs=float(epochs), batch_size=batch_size)
    config.optimizer.update(learning_rate=rate, weight_decay=decay, beta2=0.98, epsilon=1e-6, clip_norm=0.0)
    config.optimizer.decay_mask = (".=yes",)
    # fairseq warms up over 28,318 of QQP's 113,272 updates.
    config.schedule.update(name="linear", warmup=0.25 if (model, task) == ("roberta", "qqp") else 0.06)
    if task in FROM_MNLI:
        config.task.intermediate = "mnli"
