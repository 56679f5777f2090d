"""The Python interface to a trained model: `jaxlm.load(DIR)` returns a `Model`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxlm.data.unknown import check_spelling
from jaxlm.errors import UserError
from jaxlm.huggingface.sentence_transformers import embed_settings
from jaxlm.model.heads import MaskedLM
from jaxlm.runtime.compiling import jit
from jaxlm.use.embed import Embedder
from jaxlm.use.fill_mask import Candidate, fill_mask
from jaxlm.use.loading import Trained, load_trained, require_head
from jaxlm.use.score import Score, score


class Model:
    """A trained model: `load(DIR).fill_mask("The capital of France is [MASK].")`.

    `config` is the architecture (`EncoderConfig`), `params` nested dicts of float32 arrays, and `longest` the maximum
    number of tokens of a text, including begin and end. Methods raise UserError for invalid arguments.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.tokenizer, self.params, self.config = trained.tokenizer, trained.params, trained.encoder
        self.longest = trained.longest

    def tokenize(self, text: str) -> np.ndarray:
        """Returns the token ids of a text with begin and end, int32 [L]; special tokens in the text, such as the mask,
        are special tokens, as in Transformers."""
        ids = self.tokenizer.encode(text, find_special=True).ids
        return np.concatenate([[self.tokenizer.begin_id], ids, [self.tokenizer.end_id]]).astype(np.int32)

    def apply(self, tokens: Any, segment_ids: Any = None) -> Array:
        """Returns vocabulary logits float32 [B, L, V] for tokens int32 [B, L].

        With segment_ids int32 [B, L], a row may hold several texts, each with its own id, and padding with id 0; tokens
        attend only within their segment. Without them, each row is one text without padding. Raises UserError if a
        token id is not in the vocabulary or a text is longer than the model's maximum length.
        """
        require_head(self.trained)
        tokens = np.asarray(tokens)
        size, longest = self.config.vocab_size, self.longest
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise UserError(f"tokens must be integers of shape [B, L], not {tokens.dtype} {list(tokens.shape)}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < size:
            raise UserError(f"tokens contain ids {tokens.min()} to {tokens.max()}, but the model has 0 to {size - 1}")
        if segment_ids is None and tokens.shape[1] > longest:
            raise UserError(f"rows of {tokens.shape[1]} tokens exceed the model's maximum length of {longest}")
        if segment_ids is not None:
            segment_ids = np.asarray(segment_ids)
            if segment_ids.shape != tokens.shape:
                raise UserError(
                    f"segment_ids must have the shape of tokens {list(tokens.shape)}, not {list(segment_ids.shape)}"
                )
            if (most := _longest_run(segment_ids)) > longest:
                raise UserError(
                    f"a segment or padding of {most} tokens exceeds the model's maximum length of {longest}"
                )
        return _logits(self.trained.model, self.params, tokens, segment_ids)

    def embed(
        self, texts: Sequence[str], pooling: str | None = None, normalise: bool | None = None,
        layers: Sequence[int] = (-1,), too_long: str = "truncate", batch_tokens: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """Returns the texts' vectors, float32 [n, D], in order.

        `pooling` ("mean", "cls" or "max") and `normalise` default to the settings of a sentence-transformers directory,
        otherwise to the mean over all tokens, not normalised. The states of `layers` are averaged (0 is the embeddings,
        -1 the last layer). A text longer than the model's maximum length is truncated, or with too_long="refuse" raises
        UserError. The vector of an empty text is that of begin and end alone.
        """
        _check_texts(texts)
        settings = embed_settings(self.trained.directory, self.trained.longest, pooling, normalise, layers)
        embedder = Embedder(self.trained, settings, too_long, batch_tokens)
        vectors = embedder(texts)
        check_spelling({"the texts": embedder.spelling}, self.tokenizer)
        return vectors

    def score(self, texts: Sequence[str], variant: str = "within-word", batch_tokens: int = 0) -> list[Score]:
        """Returns the texts' pseudo-log-likelihoods, computed by `jaxlm.use.score.score`."""
        _check_texts(texts)
        return list(score(self.trained, texts, variant, batch_tokens))

    def fill_mask(self, text: str, top: int = 5, targets: Sequence[str] = ()) -> list[list[Candidate]]:
        """Returns candidates for each mask in the text, computed by `jaxlm.use.fill_mask.fill_mask`."""
        _check_texts(targets, "targets")
        return fill_mask(self.trained, text, top, targets)


def load(directory: str | Path, compute_dtype: str = "float32") -> Model:
    """Returns the trained model of a work directory or a Hugging Face directory. Raises UserError.

    compute_dtype is the dtype of matrix products: "float32", "bfloat16", or "auto", which is bfloat16 if the hardware
    is fast at it.
    """
    return Model(load_trained(directory, compute_dtype))


@functools.partial(jit, static_argnames=("model",))
def _logits(model: MaskedLM, params: dict, tokens: Array, segment_ids: Array | None) -> Any:
    return model.apply({"params": params}, tokens, segment_ids)


def _longest_run(segment_ids: np.ndarray) -> int:
    """Returns the length of the longest run of equal ids in a row of segment_ids [B, L]."""
    changes = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    starts = np.flatnonzero(changes)
    return int(np.diff(np.append(starts, segment_ids.size)).max(initial=0))


def _check_texts(texts: Sequence[str], name: str = "texts") -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a list of str; pass [text] for a single one")
