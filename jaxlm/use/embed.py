"""Text embeddings: a model's states pooled over each text, as in sentence-transformers."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.packing import SEGMENTS, batch_tokens_for, pack
from jaxlm.data.unknown import Spelling, spelling_of_ids
from jaxlm.errors import NotFinite, UserError
from jaxlm.huggingface.sentence_transformers import SentenceModel, read_sentence_model
from jaxlm.model.heads import MaskedLM, encode
from jaxlm.model.pooling import POOLINGS, pool_segments
from jaxlm.objectives.embedding import embedding_pooling
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.hardware import check_memory
from jaxlm.use.loading import Trained

TOO_LONG = ("truncate", "refuse")
GROUP_TEXTS, GROUP_CHARACTERS = 4096, 2**24  # most texts and characters that are tokenized and packed together
CHARACTERS = 2**20  # most characters of one text that are tokenized


class EmbedSettings(NamedTuple):
    """How the vector of a text is computed."""

    pooling: str = "mean"  # one of POOLINGS, over all tokens, including begin and end
    normalise: bool = False  # scale to length 1
    layers: tuple[int, ...] = (-1,)  # whose states are averaged: 0 is the embeddings, 1 the first layer, -1 the last
    longest: int = 512  # maximum number of tokens, including begin and end
    prompt: str = ""  # prepended to each text
    dimensions: int = 0  # the first ones that are kept; 0: all
    rescale: bool = False  # scale to length 1 again, after dimensions are removed


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
        self.width = settings.dimensions or trained.encoder.width
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
                self.settings._replace(layers=self._layers, longest=0, prompt=""),
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
    prompt: str | None = None, dimensions: int | None = None,
) -> EmbedSettings:  # fmt: skip
    """Returns how a model embeds texts, replaced by the arguments that are given.

    A sentence-transformers directory, and a model trained with train.objective=embedding, say how; any other model uses
    the mean. `prompt` is the name of a prompt: "query", "document", or another one of the directory. Raises UserError
    for settings of the directory that are not supported, for a prompt that the model does not have, and if it was
    trained with different prompts for queries and documents and none is chosen.
    """
    model = sentence_model(trained)
    longest = trained.longest
    if prompt is not None and (model is None or not model.prompts):
        raise UserError(f"prompt={prompt}: {trained.directory} has no prompts; omit it")
    if model is None:
        model = SentenceModel("mean", False)
    elif prompt is None and not trained.source and len(set(model.prompts.values())) > 1:
        task = trained.config.task
        raise UserError(
            f"{trained.directory} was trained with prompts (task.query_prompt={task.query_prompt!r},"
            f" task.document_prompt={task.document_prompt!r}); set prompt to query or document"
        )
    if (
        trained.source and model.longest
    ):  # it replaces the limit of tokenizer_config.json, but the model has no more positions
        longest = min(model.longest, trained.encoder.max_positions - trained.encoder.position_offset)
    kept = model.dimensions if dimensions is None else dimensions
    if dimensions is not None and not 1 <= dimensions <= trained.encoder.width:
        raise UserError(f"dimensions={dimensions}: must be from 1 to {trained.encoder.width}, the width of the model")
    try:
        return EmbedSettings(
            model.checked_pooling() if pooling is None else pooling,
            model.normalise if normalise is None else normalise,
            tuple(layers),
            longest,
            model.prompt(prompt),
            0 if kept >= trained.encoder.width else kept,
            bool(normalise),
        )
    except UserError as error:
        raise UserError(f"{trained.directory}: {error}") from error


def sentence_model(trained: Trained) -> SentenceModel | None:
    """Returns how a model that was made to embed texts does it, here or in a sentence-transformers directory; None for
    another model. Raises UserError."""
    if trained.source:
        return read_sentence_model(trained.directory)
    task = trained.config.task
    if trained.config.train.objective != "embedding":
        return None
    return SentenceModel(
        embedding_pooling(task), True, trained.longest,
        {"query": task.query_prompt, "document": task.document_prompt},
        "document" if task.query_prompt == task.document_prompt != "" else "",
    )  # fmt: skip


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


@partial(jit, static_argnames=("model", "settings"))
def _pooled(
    model: MaskedLM, params: dict, tokens: Array, segment_ids: Array, settings: EmbedSettings
) -> Array:  # fmt: skip
    """Returns a vector for each segment id from 1 to SEGMENTS, float32 [B, SEGMENTS, D]; zeros for unused ids."""
    states = _mean_of_layers(model, params, tokens, segment_ids, settings.layers)
    vectors = pool_segments(states, segment_ids, SEGMENTS, settings.pooling)
    if settings.normalise:
        vectors = _unit(vectors)
    if settings.dimensions:
        vectors = vectors[..., : settings.dimensions]
        vectors = _unit(vectors) if settings.rescale else vectors
    return vectors


def _unit(vectors: Array) -> Array:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


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
