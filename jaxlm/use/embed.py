"""Text embeddings: a model's states pooled over each text, as in sentence-transformers."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.packing import SEGMENTS, batch_tokens_for, pack
from jaxlm.data.unknown import Spelling, spelling_of_ids
from jaxlm.errors import NotFinite, UserError
from jaxlm.huggingface.sentence_transformers import POOLINGS, EmbedSettings, embed_settings
from jaxlm.model.heads import MaskedLM, encode
from jaxlm.model.pooling import pool_segments
from jaxlm.objectives.embedding import embedding_pooling
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.hardware import check_memory
from jaxlm.use.loading import Trained

TOO_LONG = ("truncate", "refuse")
GROUP_TEXTS, GROUP_CHARACTERS = 4096, 2**24  # most texts and characters that are tokenized and packed together
CHARACTERS = 2**20  # most characters of one text that are tokenized


class Embedder:
    """Computes the vectors of texts, float32 [n, D], and counts texts, tokens, unknown tokens and truncated texts.

    The vector of an empty text is that of begin and end alone. Special tokens in a text, such as [MASK], are special
    tokens, as in sentence-transformers. A text longer than `settings.longest` tokens is truncated, or rejected with
    too_long="refuse". A vector depends on its text alone, except for rounding: 1e-6 in
    float32, 1e-2 with products in bfloat16.
    """

    def __init__(
        self, trained: Trained, settings: EmbedSettings, too_long: str = "truncate", batch_tokens: int = 0
    ) -> None:
        _check(settings, too_long, batch_tokens, trained)
        self.settings, self.too_long = settings, too_long
        self.batch_tokens = batch_tokens or batch_tokens_for(jax.devices()[0].platform)
        self._model, self.tokenizer = trained.model, trained.tokenizer
        self._params = _cast_kernels({"encoder": trained.params["encoder"]}, trained.execution.compute_dtype)
        count = trained.encoder.layers + 1
        self._layers = tuple(sorted({layer % count for layer in settings.layers}))
        self.width = trained.encoder.width
        self.texts = self.tokens = self.computed = self.truncated = 0
        self.spelling = Spelling(0, 0, 0)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of the texts, float32 [n, D]. Raises UserError."""
        groups = [self._embed(group) for group in groups_of(texts)]
        return np.concatenate(groups) if groups else np.zeros((0, self.width), np.float32)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        sequences = self._tokenize(texts)
        pooled = []
        for batch in pack(sequences, self.batch_tokens, self.settings.longest, self.tokenizer.pad_id):
            vectors = _pooled(
                self._model, self._params, batch.tokens, batch.segment_ids,
                self.settings.pooling, self.settings.normalise, self._layers,
            )  # fmt: skip
            pooled.append((batch, vectors))
            self.computed += batch.tokens.size
        found = np.empty((len(texts), self.width), np.float32)
        for batch, vectors in pooled:
            found[batch.sequences] = np.asarray(vectors)[batch.rows, batch.segments - 1]
        if not np.isfinite(found).all():
            number = self.texts + int(np.flatnonzero(~np.isfinite(found).all(1))[0]) + 1
            raise NotFinite(f"the vector of text {number}")
        self.texts += len(texts)
        return found

    def _tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        tokenizer, room = self.tokenizer, self.settings.longest - 2
        sequences = []
        texts = [self.settings.prompt + text for text in texts]
        encodings = tokenizer.encode_batch([text[:CHARACTERS] for text in texts], find_special=True)
        for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if len(encoding.ids) > room or len(text) > CHARACTERS:
                if self.too_long == "refuse":
                    raise UserError(
                        f"text {self.texts + number + 1} is longer than the model's maximum of {self.settings.longest} "
                        f"tokens ({text[:40]!r}...); split it, or set --too-long=truncate to use its beginning"
                    )
                self.truncated += 1
            ids = encoding.ids[:room]
            self.tokens += len(ids) + 2
            self.spelling += spelling_of_ids(ids, tokenizer)
            sequences.append(np.concatenate([[tokenizer.begin_id], ids, [tokenizer.end_id]]).astype(np.int32))
        return sequences


def settings_for(
    trained: Trained, pooling: str | None = None, normalise: bool | None = None, layers: Sequence[int] = (-1,),
    prompt: str | None = None,
) -> EmbedSettings:  # fmt: skip
    """Returns how a model embeds texts, replaced by the arguments that are given.

    A model that was trained with train.objective=embedding has the pooling and the prompts of its training, and
    vectors of length 1; `prompt` is "query" or "document". Raises UserError if it was trained with prompts and none is
    chosen, and for a prompt of another model.
    """
    settings = embed_settings(trained.directory, trained.longest, pooling, normalise, layers)
    task = trained.config.task
    trained_to_embed = not trained.source and trained.config.train.objective == "embedding"
    if not trained_to_embed:
        if prompt is not None:
            raise UserError(f"prompt={prompt}: {trained.directory} has no prompts for queries and documents; omit it")
        return settings
    if prompt not in (None, "query", "document"):
        raise UserError(f"prompt={prompt} is not one of query, document")
    if prompt is None and (task.query_prompt or task.document_prompt):
        raise UserError(
            f"{trained.directory} was trained with prompts (task.query_prompt={task.query_prompt!r},"
            f" task.document_prompt={task.document_prompt!r}); set prompt to query or document"
        )
    return settings._replace(
        pooling=pooling or embedding_pooling(task),
        normalise=normalise is None or normalise,
        prompt={"query": task.query_prompt, "document": task.document_prompt}.get(prompt or "", ""),
    )


def groups_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields the texts in lists of bounded size; the same texts always give the same lists."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if len(group) == GROUP_TEXTS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


@partial(jit, static_argnames=("model", "pooling", "normalise", "layers"))
def _pooled(
    model: MaskedLM, params: dict, tokens: Array, segment_ids: Array, pooling: str, normalise: bool,
    layers: tuple[int, ...],
) -> Array:  # fmt: skip
    """Returns a vector for each segment id from 1 to SEGMENTS, float32 [B, SEGMENTS, D]; zeros for unused ids."""
    states = _mean_of_layers(model, params, tokens, segment_ids, layers)
    vectors = pool_segments(states, segment_ids, SEGMENTS, pooling)
    if normalise:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors


def _mean_of_layers(model: MaskedLM, params: dict, tokens: Array, segment_ids: Array, layers: tuple[int, ...]) -> Array:
    """Returns the mean of the layers' states, float32 [B, L, D]; 0 is the embeddings, -1 includes the final norm."""
    last = model.config.layers
    if layers == (last,):
        return encode(model, params, tokens, segment_ids).astype(jnp.float32)
    names = {0: "embeddings"} | {layer: f"layers_{layer - 1}" for layer in range(1, last)}
    wanted = {names[layer] for layer in layers if layer != last}
    final, captured = encode(
        model, params, tokens, segment_ids,
        capture_intermediates=lambda module, method: module.name in wanted, mutable=["intermediates"],
    )  # fmt: skip
    found = captured["intermediates"]["encoder"]

    def states_of(layer: int) -> Any:
        if layer == last:
            return final
        out = found[names[layer]]["__call__"][0]
        return out if layer == 0 else out[0]  # a layer also returns its attention values

    return sum(states_of(layer).astype(jnp.float32) for layer in layers) / len(layers)


def _cast_kernels(params: dict, dtype: str) -> dict:
    """Returns the parameters with kernels in the dtype of products, so that they are not cast for each batch."""

    def cast(path: Any, leaf: Array) -> Array:
        return jnp.asarray(leaf, dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def _check(settings: EmbedSettings, too_long: str, batch_tokens: int, trained: Trained) -> None:
    count = trained.encoder.layers
    if settings.pooling not in POOLINGS:
        raise UserError(f"pooling={settings.pooling} is not one of {', '.join(POOLINGS)}")
    if too_long not in TOO_LONG:
        raise UserError(f"too_long={too_long} is not one of {', '.join(TOO_LONG)}")
    if batch_tokens < 0:
        raise UserError(f"batch_tokens={batch_tokens}: must not be negative")
    check_memory(
        4 * batch_tokens * trained.encoder.width, f"embedding with batch_tokens={batch_tokens}", "set a lower number"
    )
    if not settings.layers or not all(-count - 1 <= layer <= count for layer in settings.layers):
        raise UserError(
            f"layers={','.join(map(str, settings.layers))}: must be from 0 (the embeddings) to {count} for this model,"
            f" or from -1 (the last layer) to {-count - 1}"
        )
    if settings.longest < 3:
        raise UserError(f"the maximum length of {settings.longest} tokens leaves none between begin and end")
