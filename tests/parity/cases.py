"""Small models of each Hugging Face family, shared by the parity tests and the recorded outputs.

No matrix is square, no bias is zero and no scale is one; rows are padded and longer than the local window.
"""

import zlib

import numpy as np

COMMON = {
    "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 32,
}  # fmt: skip
MODERN = COMMON | {
    "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1,
    "eos_token_id": 2, "sep_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 50.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
# name: (class in Transformers, config)
CASES: dict[str, tuple[str, dict]] = {
    "bert": ("BertForMaskedLM", COMMON),
    "bert_tanh_relu": ("BertForMaskedLM", COMMON | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "bert_untied": ("BertForMaskedLM", COMMON | {"tie_word_embeddings": False, "hidden_act": "relu"}),
    "bert_without_head": ("BertModel", COMMON),
    "bert_pretraining": ("BertForPreTraining", COMMON),
    "roberta": ("RobertaForMaskedLM", COMMON | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta_untied": ("RobertaForMaskedLM", COMMON | {"tie_word_embeddings": False, "hidden_act": "silu"}),
    "xlm_roberta": ("XLMRobertaForMaskedLM", COMMON | {"type_vocab_size": 1}),
    "camembert": ("CamembertForMaskedLM", COMMON | {"type_vocab_size": 1}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": 41, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "max_position_embeddings": 32},
    ),
    "electra_generator": ("ElectraForMaskedLM", COMMON | {"embedding_size": 16}),
    "electra_square": ("ElectraForMaskedLM", COMMON | {"embedding_size": 24, "hidden_act": "relu"}),
    "electra_discriminator": ("ElectraForPreTraining", COMMON | {"embedding_size": 16}),
    "modernbert": ("ModernBertForMaskedLM", MODERN | {"rope_parameters": ROPE}),
    "modernbert_biases": (
        "ModernBertForMaskedLM",
        MODERN | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
                  "hidden_activation": "silu", "classifier_activation": "relu", "norm_eps": 1e-3,
                  "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
    ),
    "modernbert_untied": (
        "ModernBertForMaskedLM", MODERN | {"tie_word_embeddings": False, "decoder_bias": False, "local_attention": 7}
    ),
}  # fmt: skip


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 values that depend only on a tensor's name and shape, not on the version of NumPy."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    norm_scale = len(shape) == 1 and name.endswith("weight")
    return (1 + 0.3 * values if norm_scale else 0.3 * values).astype(np.float32)


def batch(offset: int = 0) -> dict[str, np.ndarray]:
    """Returns tokens [B, L] padded at the end with id `offset`, attention mask, token types, and labels (-100 if not
    masked)."""
    random = np.random.RandomState(3)
    tokens = random.randint(5, 41, (3, 26))
    attention = (np.arange(26) < np.array([26, 19, 7])[:, None]).astype(np.int64)
    tokens = np.where(attention == 1, tokens, offset)
    types = random.randint(0, 2, tokens.shape)
    masked = (random.uniform(size=tokens.shape) < 0.3) & (attention == 1)
    return {"tokens": tokens, "attention": attention, "types": types, "labels": np.where(masked, tokens, -100)}


def outputs_of(encoder, params):
    """Returns our model's (loss, outputs) as `reference.run` defines them for the head of the checkpoint."""
    import jax
    import jax.numpy as jnp

    from jaxlm.model.heads import MaskedLM, ReplacedTokenHead, encode, predict

    data, model = batch(encoder_pad(encoder)), MaskedLM(encoder)
    types = data["types"].astype(np.int32) if encoder.token_types > 1 else None
    real = jnp.asarray(data["attention"])
    states = encode(model, params, data["tokens"], real.astype(jnp.int32), token_types=types)
    if "head" in params:
        logits = predict(model, params, states)
        masked = data["labels"] >= 0
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), np.where(masked, data["labels"], 0)[..., None], -1)
        return -jnp.where(masked, chosen[..., 0], 0).sum() / masked.sum(), logits
    if "discriminator" in params:
        head = ReplacedTokenHead(model.config, model.execution)
        states = head.apply({"params": params["discriminator"]}, states)[..., None]
    return jnp.where(real[..., None] == 1, states**2, 0).sum() / (real.sum() * states.shape[-1]), states


def encoder_pad(encoder) -> int:
    """Returns the pad token's id; RoBERTa's positions start at the row after it."""
    return encoder.position_offset - 1 if encoder.position_offset else 0


def summary(outputs: np.ndarray) -> np.ndarray:
    """Returns the first three values and the root mean square of each row of outputs [tokens, V], [tokens, 4]."""
    return np.concatenate([outputs[:, :3], np.sqrt(np.square(outputs).mean(-1, keepdims=True))], -1)
