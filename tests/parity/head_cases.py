"""Small models of each Hugging Face family with each head of a task, for parity tests and recorded outputs."""

import numpy as np

from tests.parity.cases import COMMON, MODERN, ROPE, batch, encoder_pad

NAMES = {"id2label": {0: "dull", 1: "Fine", 2: "grand"}, "label2id": {"dull": 0, "Fine": 1, "grand": 2}}
TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
SINGLE = NAMES | {"problem_type": "single_label_classification"}
NUMBER = {"num_labels": 1, "problem_type": "regression"}
# kind of head: (end of the class in Transformers, keys of config.json)
KINDS = {
    "sequence": ("ForSequenceClassification", SINGLE),
    "token": ("ForTokenClassification", TAGS),
    "span": ("ForQuestionAnswering", {}),
    "choice": ("ForMultipleChoice", {}),
}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # of the vocabulary that the tests add
ROBERTA = COMMON | IDS | {"type_vocab_size": 1, "classifier_dropout": 0.3}
MODERNBERT = MODERN | IDS | {"cls_token_id": 2, "sep_token_id": 3}
# family: (start of its classes in Transformers, config); no rate of dropout is a default
BASES = {
    "bert": ("Bert", COMMON | {"classifier_dropout": 0.25}),
    "roberta": ("Roberta", ROBERTA),
    "xlm_roberta": ("XLMRoberta", ROBERTA),
    "camembert": ("Camembert", ROBERTA),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 41, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "max_position_embeddings": 32,
         "seq_classif_dropout": 0.35, "qa_dropout": 0.15},
    ),
    "electra": ("Electra", COMMON | {"embedding_size": 16, "classifier_dropout": 0.4, "summary_last_dropout": 0.45}),
    "modernbert": ("ModernBert", MODERNBERT | {"rope_parameters": ROPE, "classifier_dropout": 0.05}),
}  # fmt: skip
# name: (class in Transformers, config)
HEAD_CASES: dict[str, tuple[str, dict]] = {
    f"{family}_{kind}": (start + end, config | keys)
    for family, (start, config) in BASES.items()
    for kind, (end, keys) in KINDS.items()
} | {
    "bert_multi_label": (
        "BertForSequenceClassification", COMMON | NAMES | {"problem_type": "multi_label_classification"}
    ),
    "bert_number": ("BertForSequenceClassification", COMMON | NUMBER),
    "distilbert_number": ("DistilBertForSequenceClassification", BASES["distilbert"][1] | NUMBER),
    "modernbert_mean": (
        "ModernBertForSequenceClassification",
        MODERNBERT | SINGLE | {"classifier_pooling": "mean", "classifier_bias": True, "classifier_activation": "relu",
                           "norm_bias": True},
    ),
    "modernbert_mean_choice": ("ModernBertForMultipleChoice", MODERNBERT | {"classifier_pooling": "mean"}),
}  # fmt: skip


def head_outputs(encoder, task, params) -> np.ndarray:
    """Returns our outputs for `batch`, [B, C] of texts or choices and [B, L, C] of tokens."""
    import jax

    from jaxlm.model.execution import Execution
    from jaxlm.model.task_model import SegmentModel, TokenModel

    data, settings = batch(encoder_pad(encoder)), (encoder, Execution(), task.outputs, task.style, 0.0)
    inputs = [data[name].astype(np.int32) for name in ("tokens", "attention", "types")]
    if task.pools:
        model = SegmentModel(*settings, task.pooling)
        return np.asarray(jax.jit(lambda p: model.apply({"params": p}, *inputs, 1))(params))[:, 0]
    return np.asarray(jax.jit(lambda p: TokenModel(*settings).apply({"params": p}, *inputs))(params))
