"""The Python interface to a trained model: `jaxlm.load(DIR)` returns a `Model`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxlm.data.unknown import check_spelling
from jaxlm.errors import UserError
from jaxlm.use.answer import answer
from jaxlm.use.classify import classify
from jaxlm.use.embed import Embedder, settings_for
from jaxlm.use.fill_mask import Candidate, fill_mask
from jaxlm.use.forward import forward
from jaxlm.use.loading import Trained, load_trained, require_head
from jaxlm.use.neighbours import check_count
from jaxlm.use.rank import rank
from jaxlm.use.score import Score, score
from jaxlm.use.tag import tag
from jaxlm.use.task_model import TaskModel, for_verb
from jaxlm.use.zero_shot import with_template


class Model:
    """A trained model: `load(DIR).fill_mask("The capital of France is [MASK].")`.

    `load` makes it. `config` is the architecture (`EncoderConfig`), `params` nested dicts of float32 arrays, and
    `longest` the maximum number of tokens of a text, including begin and end. `tokenizer` has the ids of the special
    tokens: `pad_id`, `begin_id`, `end_id` and `mask_id`. Methods raise UserError for invalid arguments.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.tokenizer, self.params, self.config = trained.tokenizer, trained.params, trained.encoder
        self.longest = trained.longest
        self._task_models: dict[str, TaskModel] = {}  # by verb
        self._zero_shot: tuple[tuple[str, ...], TaskModel] | None = None  # for the last template

    def tokenize(self, text: str) -> np.ndarray:
        """Returns the token ids of a text with begin and end, int32 [L]; special tokens in the text, such as the mask,
        are special tokens, as in Transformers."""
        if not isinstance(text, str):
            raise UserError(f"text must be a str, not {type(text).__name__}")
        ids = self.tokenizer.encode(text, find_special=True).ids
        return np.concatenate([[self.tokenizer.begin_id], ids, [self.tokenizer.end_id]]).astype(np.int32)

    def logits(
        self, tokens: ArrayLike, segment_ids: ArrayLike | None = None, token_types: ArrayLike | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Array:  # fmt: skip
        """Returns vocabulary logits float32 [B, L, V] for tokens int32 [B, L].

        With segment_ids int32 [B, L], a row may hold several texts, each with its own id, and padding with id 0; tokens
        attend only within their segment. Without them, each row is one text without padding. token_types int32 [B, L]
        are 0 where they are not given. `params`, a tree like `Model.params`, replaces the model's own.

        The function can be differentiated with respect to `params` in reverse mode (`jax.grad`, not `jax.jvp`), and
        called inside `jax.jit`; there, arrays keep their shapes. Outside, they are padded to powers of two, so that few
        shapes are compiled. Raises UserError if arrays do not fit each other or the model, or the model has no
        masked-LM head.
        """
        require_head(self.trained)
        return forward(self.trained, True, tokens, segment_ids, token_types, params)

    def encode(
        self, tokens: ArrayLike, segment_ids: ArrayLike | None = None, token_types: ArrayLike | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Array:  # fmt: skip
        """Returns the states of the last layer, float32 [B, L, D]; the arguments are those of `logits`."""
        return forward(self.trained, False, tokens, segment_ids, token_types, params)

    def embed(
        self, texts: Sequence[str], pooling: str | None = None, normalise: bool | None = None,
        layers: Sequence[int] = (-1,), too_long: str = "truncate", batch_tokens: int = 0, prompt: str | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Returns the texts' vectors, float32 [n, D], in order.

        `pooling` ("mean", "cls", "max" or "lasttoken") and `normalise` default to the settings of a
        sentence-transformers directory, or of a model trained to embed, otherwise to the mean over all tokens, not
        normalised. `prompt` is "query" or "document", as in sentence-transformers' encode_query and encode_document, or
        the name of another prompt of the directory. The states of `layers` are averaged (0 is the embeddings, -1 the
        last layer). `dimensions` keeps the first ones of each vector, by default as the directory says; they are scaled
        to length 1 again only with normalise=True. A text longer than the model's maximum length is truncated, or with
        too_long="refuse" raises UserError. The vector of an empty text is that of begin and end alone.
        """
        _check_texts(texts)
        if not isinstance(layers, Sequence) or not all(isinstance(layer, int) for layer in layers):
            raise UserError("layers must be a list of int; pass [layer] for a single one")
        settings = settings_for(self.trained, pooling, normalise, layers, prompt, dimensions)
        embedder = Embedder(self.trained, settings, too_long, batch_tokens)
        vectors = embedder(texts)
        check_spelling({"the texts": embedder.spelling}, self.tokenizer)
        return vectors

    def score(self, texts: Sequence[str], variant: str = "within-word", batch_tokens: int = 0) -> list[Score]:
        """Returns the texts' pseudo-log-likelihoods, in order.

        They are sums of the log-probabilities of a text's tokens, each masked in turn: with variant "original" alone
        (arXiv 1910.14659), with "within-word" together with the tokens that follow in the same word (arXiv 2305.10588).
        Raises UserError if a text has no tokens or exceeds the model's maximum length, or the model has no masked-LM
        head.
        """
        _check_texts(texts)
        return list(score(self.trained, texts, variant, batch_tokens))

    @overload
    def fill_mask(self, text: str, top: int = 5, targets: Sequence[str] = ()) -> list[list[Candidate]]: ...

    @overload
    def fill_mask(self, text: list[str], top: int = 5, targets: Sequence[str] = ()) -> list[list[list[Candidate]]]: ...

    def fill_mask(
        self, text: str | list[str], top: int = 5, targets: Sequence[str] = ()
    ) -> list[list[Candidate]] | list[list[list[Candidate]]]:
        """Returns for each mask in the text a list of its `top` most probable words, the most probable first.

        With `targets`, returns these words instead, with their probabilities among all words. For a list of texts,
        returns a list with the result of each. Raises UserError if a text has no mask, a target is not a single token,
        or the model has no masked-LM head.
        """
        _check_texts(targets, "targets")
        check_count("top", top)
        if isinstance(text, str):
            return fill_mask(self.trained, text, top, targets)
        _check_texts(text)
        return [fill_mask(self.trained, one, top, targets) for one in text]

    def classify(
        self, texts: Sequence[str] | Sequence[tuple[str, ...]], template: str = "", label_words: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Returns what a fine-tuned model predicts for each text, or each pair of texts, in order.

        A dict has "label", "probability" and "probabilities" (by label); or, if the model was trained with several
        labels per text, "labels" (those with a probability above one half) and "probabilities"; or "value", a number.
        For the texts of an evaluation set, they are those that the run wrote. A text longer than in training is
        truncated, with a warning. Raises UserError if the model has no such head, or reads pairs and is given texts.

        With `template`, such as "{text} It was [MASK].", and `label_words`, such as ["good=great", "bad=terrible"], a
        masked language model predicts the label whose word best fills the mask, without training. A word is one token
        of the vocabulary; "good=great/fine" gives a label two, whose probabilities add up.
        """
        if not isinstance(texts, Sequence) or isinstance(texts, str):
            raise UserError("texts must be a list of str, or of pairs of str; pass [text] for a single one")
        if not template:
            if label_words:
                raise UserError("label_words applies to template, which is not given")
            return classify(self._task("classify"), texts)
        _check_texts(label_words, "label_words")
        key = template, *label_words
        if self._zero_shot is None or self._zero_shot[0] != key:
            self._zero_shot = key, TaskModel(with_template(self.trained, template, label_words))
        return classify(self._zero_shot[1], texts)

    def tag(self, sentences: Sequence[str] | Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Returns {"words": [...], "tags": [...]} for each sentence, a list of words or a str with spaces between them.

        Every word has a tag, also in sentences longer than the model. Raises UserError if the model was not fine-tuned
        with train.objective=tagging.
        """
        if not isinstance(sentences, Sequence) or isinstance(sentences, str):
            raise UserError("sentences must be a list of str, or of lists of words; pass [sentence] for a single one")
        return tag(self._task("tag"), sentences)

    def answer(self, questions: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Returns the answer to each (question, context), in order.

        A dict has "text", a slice of the context, or "" if there is no answer, its "start" and "end" in characters, its
        "score", and the best candidates in "n_best".
        Raises UserError if the model was not fine-tuned with train.objective=span.
        """
        if not isinstance(questions, Sequence) or isinstance(questions, str):
            raise UserError("questions must be a list of pairs (question, context)")
        return answer(self._task("answer"), questions)

    def rank(self, query: str, passages: Sequence[str]) -> list[dict[str, Any]]:
        """Returns {"index", "score"} of each passage, the best answer to the query first; the score is a logit.

        Raises UserError if the model was not fine-tuned with train.objective=reranking.
        """
        _check_texts(passages, "passages")
        return rank(self._task("rank"), query, passages)

    def _task(self, verb: str) -> TaskModel:
        """Returns the model of the task that a verb uses. Raises UserError."""
        if verb not in self._task_models:
            self._task_models[verb] = TaskModel(for_verb(self.trained, verb))
        return self._task_models[verb]


def load(directory: str | Path, compute_dtype: str | None = None, step: int | str | None = None) -> Model:
    """Returns the trained model of a work directory or a Hugging Face directory. Raises UserError.

    The arguments are those of `jaxlm.load`.
    """
    return Model(load_trained(directory, compute_dtype, step))


def _check_texts(texts: Sequence[str], name: str = "texts") -> None:
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a list of str; pass [{name.removesuffix('s')}] for a single one")
