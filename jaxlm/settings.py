"""Every setting of a run: its default, what it means, and which values it takes. `jaxlm config` prints this table."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One setting: its default, what it means, the only values or the interval that it takes, and its type."""

    default: Any
    help: str
    choices: tuple = ()
    within: str = ""  # a key of INTERVALS
    kind: type | None = None  # where the default does not tell
    item: type = str  # of the entries, where the setting is a tuple

    @property
    def type(self) -> type:
        return self.kind or type(self.default)


INTERVALS: dict[str, tuple[Callable[[float], bool], str]] = {
    ">=1": (lambda x: x >= 1, "at least 1 is needed"),
    ">=0": (lambda x: x >= 0, "it cannot be negative"),
    ">0": (lambda x: x > 0, "it must be above 0"),
    ">1": (lambda x: x > 1, "it must be above 1"),
    "(0,1)": (lambda x: 0 < x < 1, "a share between 0 and 1 is meant, such as 0.15"),
    "[0,1)": (lambda x: 0 <= x < 1, "a share from 0 to below 1 is meant"),
    "[0,1]": (lambda x: 0 <= x <= 1, "a share from 0 to 1 is meant"),
    "(0,1]": (lambda x: 0 < x <= 1, "a number above 0 and up to 1 is meant"),
}

S = Setting

SETTINGS: dict[str, dict[str, Setting]] = {
    "data": {
        "path": S((), "what to train on: files, folders, globs, 'tfds:NAME[:SPLIT]', 'pydocs'; several with commas"),
        "weights": S(
            (), "share of rows from each path, as 9,1; empty: every row of every path once an epoch", item=float
        ),
        "format": S("auto", "auto goes by the file name", ("auto", "text", "jsonl", "csv", "tsv", "parquet")),
        "document": S("file", "what is one document of a text file", ("file", "paragraph", "line")),
        "field": S("text", "the field that holds the text (JSON Lines, CSV, TSV, Parquet, TFDS)"),
        "encoding": S("utf-8", "of text, JSON Lines, CSV and TSV files"),
        "held_out": S((), "held-out sets with their own paths, as NAME=PATH; several with commas"),
        "held_out_fraction": S(
            0.01, "without data.held_out: this share of documents, by a hash of the text, is set aside", within="[0,1)"
        ),
        "deduplicate": S(True, "drop documents whose text was seen before, held-out text included"),
        "max_document_characters": S(
            1_000_000, "longer documents are cut there, at a space where there is one", within=">=1"
        ),
        "max_megabytes": S(None, "read only about so much text of each path; none: all", within=">0", kind=float),
        "sequence_length": S(128, "tokens in a row", within=">=1"),
        "prepend_begin": S(
            False, "a row that begins inside a document gets the begin token in front, as inference will"
        ),
        "shard_bytes": S(256 * 2**20, "no file of the token store is larger than this", within=">=1"),
        "cache": S("", "folder of token stores, shared by runs; empty: ~/.cache/jaxlm/stores"),
        "workers": S(0, "processes that tokenize; 0: one for each processor", within=">=0"),
        "prefetch": S(4, "batches prepared ahead of the accelerator", within=">=1"),
    },
    "tokenizer": {
        "path": S(
            "", "a .model, tokenizer.json or vocab.txt, or a folder with one; empty: train SentencePiece on the data"
        ),
        "add": S("", "a file of tokens, one a line, that are added to the vocabulary of tokenizer.path or init_from"),
        "algorithm": S("unigram", "of the trained vocabulary", ("unigram", "bpe")),
        "vocab_size": S(8192, "entries of the trained vocabulary, special tokens included", within=">=1"),
        "lower_case": S(False, "the trained vocabulary folds case"),
        "character_coverage": S(
            0.9995, "share of characters the trained vocabulary must spell; the rest are unknown", within="(0,1]"
        ),
        "split_han": S(False, "a piece of the trained vocabulary holds at most one Chinese character, as BERT's do"),
        "byte_fallback": S(False, "spell unknown characters in bytes (256 entries)"),
        "training_megabytes": S(
            32.0, "text used to train the vocabulary, spread evenly over the documents", within=">0"
        ),
        "words": S(
            "unicode",
            "who finds words: Unicode boundaries, jieba (Chinese), ICU (Thai, Lao, Khmer, Burmese), or"
            " the spaces of text that is already segmented",
            ("unicode", "jieba", "icu", "spaces"),
        ),
    },
    "model": {
        "init_from": S(
            "",
            "start with the weights of this Hugging Face directory or work directory, and take architecture and"
            " tokenizer from it; --config.init_from for short",
        ),
        "extend_positions": S(
            "refuse",
            "where model.max_positions is beyond the table of init_from: repeat its rows, or interpolate between them",
            ("refuse", "repeat", "interpolate"),
        ),
        "layers": S(4, "Transformer layers", within=">=1"),
        "width": S(256, "width of the residual stream", within=">=1"),
        "heads": S(4, "attention heads; they divide the width", within=">=1"),
        "feed_forward_width": S(1024, "hidden width of the feed-forward; of each half where it is gated", within=">=1"),
        "embedding_width": S(0, "width of the embedding tables; 0: the model's; another is projected", within=">=0"),
        "vocab_size": S(0, "entries of the token table; 0: the tokenizer's size", within=">=0"),
        "norm": S("layer_norm", "normalisation", ("layer_norm", "rms_norm")),
        "norm_position": S("pre", "before each sublayer, or after the residual sum as in BERT", ("pre", "post")),
        "norm_epsilon": S(1e-5, "added to the variance", within=">0"),
        "norm_bias": S(True, "bias in the norms"),
        "attention_bias": S(True, "bias in query, key, value and output projections"),
        "feed_forward_bias": S(True, "bias in the feed-forward"),
        "first_norm": S(True, "attention norm of the first layer; ModernBERT leaves it out"),
        "embedding_norm": S(False, "norm after the embeddings"),
        "activation": S(
            "relu_squared",
            "of the feed-forward; geglu, swiglu and reglu are gated",
            ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "geglu", "swiglu", "reglu"),
        ),
        "positions": S("rotary", "how tokens know their place", ("learned", "rotary", "alibi", "none")),
        "max_positions": S(512, "rows of the learned position table", within=">=1"),
        "position_offset": S(0, "first row of the position table that is used; RoBERTa's is 2", within=">=0"),
        "rotary_base": S(10_000.0, "rotary base of global layers", within=">1"),
        "local_rotary_base": S(10_000.0, "rotary base of local layers", within=">1"),
        "layer_pattern": S("g", "tiled over the layers: g sees all of a document, l a window; ModernBERT's is gll"),
        "window": S(128, "a local layer's window: half of it on each side", within=">=1"),
        "value_residual": S(
            0.0, "share of the first layer's values in those of each later layer; 0.5 in the paper", within="[0,1)"
        ),
        "token_types": S(0, "rows of the token-type table; 0: none", within=">=0"),
        "tied_output": S(True, "the output projection is the token table"),
        "output_bias": S(True, "bias on the vocabulary logits"),
        "output_bias_from_frequencies": S(False, "the output bias starts at the log of token frequencies"),
        "head_transform": S(True, "dense layer, activation and norm between encoder and logits"),
        "head_bias": S(True, "bias in the head's dense layer"),
        "head_activation": S(
            "gelu", "of the head's dense layer", ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "none")
        ),
        "dropout": S(0.0, "after embeddings and each sublayer", within="[0,1)"),
        "attention_dropout": S(0.0, "of attention weights", within="[0,1)"),
        "initialization": S(
            "normal",
            "normal: truncated at two deviations; depth_scaled: output projections divided by"
            " sqrt(2 layers); zero_output: output projections at zero",
            ("normal", "depth_scaled", "zero_output"),
        ),
        "initialization_std": S(0.02, "standard deviation of the initial weights", within=">0"),
    },
    "masking": {
        "scheme": S("token", "what is masked as one", ("token", "whole_word", "span")),
        "rate": S(0.15, "share of a row's ordinary tokens that are predicted", within="(0,1)"),
        "final_rate": S(
            None,
            "the rate falls or rises on a line to this one at the end of the run; none: constant",
            kind=float,
            within="(0,1)",
        ),
        "mask_share": S(0.8, "of the predicted tokens: replaced by the mask token", within="[0,1]"),
        "random_share": S(
            0.1, "of the predicted tokens: replaced by an ordinary token; the rest stay as they are", within="[0,1]"
        ),
        "span_p": S(
            0.2,
            "of the geometric distribution of a span's words: 0.2, clipped at 10, has a mean of 3.8",
            within="(0,1]",
        ),
        "span_max": S(10, "words of the longest span", within=">=1"),
    },
    "train": {
        "objective": S(
            "masked",
            "masked: predict masked tokens; causal: predict each token from those before it; classify: predict the"
            " label of an example (section task)",
            ("masked", "causal", "classify"),
        ),
        "steps": S(None, "stop after so many updates (one of steps, epochs, tokens, minutes)", kind=int, within=">0"),
        "epochs": S(None, "stop after so many passes over the data", kind=float, within=">0"),
        "tokens": S(None, "stop after so many tokens", kind=float, within=">0"),
        "minutes": S(
            None, "stop after so many minutes of training; the schedule follows the clock", kind=float, within=">0"
        ),
        "batch_size": S(32, "rows in the global batch", within=">=1"),
        "accumulate": S(
            1, "micro-batches a step, one after another; the result is that of the whole batch", within=">=1"
        ),
        "phases": S(
            (),
            "rows of settings that hold one after another, as JSON: steps (all but the last), sequence_length,"
            " batch_size, accumulate, mask_rate, learning_rate, rotary_base, objective (masked, causal)",
            item=dict,
        ),
        "seed": S(0, "of initialization, data order, masks and dropout", within=">=0"),
        "init_seed": S(None, "of the initial weights; none: train.seed", kind=int, within=">=0"),
        "data_seed": S(None, "of the order of rows; none: train.seed", kind=int, within=">=0"),
        "mask_seed": S(None, "of masks and dropout; none: train.seed", kind=int, within=">=0"),
        "compute_dtype": S(
            "auto",
            "of matrix products; auto: bfloat16 where the processor is fast at it",
            ("auto", "float32", "bfloat16"),
        ),
        "deterministic": S(False, "the same bits each time on GPUs too, slower"),
        "attention": S(
            "auto",
            "what computes it; auto: flash on GPUs and splash on TPUs where they can do what the model asks, else xla",
            ("auto", "xla", "flash", "splash"),
        ),
        "rematerialise": S(
            "none",
            "what the backward pass computes again, to save memory; attention: its weights; dots: all but the results"
            " of products with parameters and of attention; full: whole layers",
            ("none", "attention", "dots", "full"),
        ),
        "logits_megabytes": S(
            0,
            "vocabulary logits are computed in pieces of at most this size on a device; 0: 256, or on an accelerator a"
            " 32nd of its memory",
            within=">=0",
        ),
    },
    "task": {
        "train": S("", "file of training examples: .tsv, .csv or .jsonl"),
        "evaluation": S((), "NAME=FILE, several with commas; a bare FILE is named evaluation"),
        "text": S(("sentence",), "column with the text, or two columns for pairs, separated by a comma"),
        "label": S("label", "column with the label"),
        "labels": S((), "names of the labels, in the order of the outputs; empty: those of task.train, sorted"),
        "header": S(True, "the files' first line names the columns; otherwise columns are numbered from 0"),
        "pooling": S("mean", "how the states of an example become one vector", ("mean", "cls", "max")),
        "metric": S("accuracy", "metric that selects the best checkpoint", ("accuracy", "loss")),
    },
    "optimizer": {
        "name": S("adamw", "muon: for the layers' matrices, AdamW for the rest", ("adamw", "lamb", "muon")),
        "learning_rate": S(1e-3, "peak rate", within="(0,1]"),
        "muon_learning_rate": S(0.02, "peak rate of the matrices under muon", within="(0,1]"),
        "muon_momentum": S(0.95, "momentum of the matrices under muon", within="[0,1)"),
        "beta1": S(0.9, "decay of the mean of gradients", within="[0,1)"),
        "beta2": S(0.98, "decay of the mean of squared gradients", within="[0,1)"),
        "epsilon": S(1e-8, "added to the root of the mean square", within=">0"),
        "weight_decay": S(0.01, "decoupled weight decay, times the learning rate", within=">=0"),
        "decay_mask": S(
            ("/(kernel|embedding)$=yes", "/(bias|scale)$=no"),
            "which parameters decay: PATTERN=yes or no, the first that matches a parameter's path counts",
        ),
        "rate_multipliers": S(
            (),
            "factors on the learning rate, and so on weight decay: PATTERN=FACTOR, the first that matches counts, 1 for"
            " the rest; embeddings, encoder, head and layers:0-5 are patterns too",
        ),
        "layer_decay": S(
            1.0,
            "each layer learns at this share of the rate of what stands on it: of n layers the last at layer_decay, the"
            " first at its nth power, embeddings at one more, the head at 1",
            within="(0,1]",
        ),
        "freeze": S(
            (),
            "what does not learn: embeddings, encoder, head, layers:0-5, layers:0,1,2, patterns of parameter paths; a"
            " tied output is part of the embeddings",
        ),
        "clip_norm": S(1.0, "gradients are scaled down to this global norm; 0: never", within=">=0"),
    },
    "schedule": {
        "name": S(
            "linear",
            "after the warm-up: falls on a line, on a cosine, stays and falls at the end (wsd), stays",
            ("linear", "cosine", "wsd", "constant"),
        ),
        "warmup": S(0.06, "steps of linear warm-up, or, below 1, its share of the run", within=">=0"),
        "decay_steps": S(0.1, "wsd: steps of the fall at the end, or, below 1, its share of the run", within=">=0"),
        "decay_shape": S("linear", "wsd: 1-sqrt falls fast at first", ("linear", "1-sqrt")),
        "final": S(0.0, "share of the peak rate that is left at the end", within="[0,1]"),
    },
    "mesh": {
        "slices": S(0, "TPU slices, the outermost split of the batch; 0: as many as there are", within=">=0"),
        "data": S(-1, "devices of a slice that split the batch; -1: all that are left"),
        "fsdp": S(1, "devices that split batch and parameters", within=">=1"),
        "tensor": S(1, "devices that split the matrices' widths", within=">=1"),
        "coordinator": S(
            "auto",
            "HOST:PORT of the first of several processes; auto: where Slurm's, Open MPI's or a TPU pod's environment"
            " tells of several; detect: wherever JAX finds them, Kubernetes and Google's TPU machines too",
        ),
        "processes": S(0, "how many there are, where mesh.coordinator is given", within=">=0"),
        "process_id": S(-1, "which of them this is, from 0, where mesh.coordinator is given"),
        "heartbeat_seconds": S(30.0, "a process that is silent for so long is dead, and ends the others", within=">=1"),
    },
    "checkpoint": {
        "every": S(
            1000, "steps that a kill may cost at most: a checkpoint begins there and halfway between", within=">=1"
        ),
        "keep": S(2, "newest checkpoints kept", within=">=1"),
        "keep_best": S(True, "keep the one with the lowest held-out loss too"),
    },
    "evaluation": {
        "every": S(1000, "steps between evaluations on the held-out sets; 0: only at the end", within=">=0"),
        "rows": S(512, "rows of each held-out set that are used, the first ones; 0: all", within=">=0"),
        "batch_size": S(0, "rows in a batch; 0: train.batch_size", within=">=0"),
    },
    "logging": {
        "every": S(10, "steps between lines of metrics.jsonl", within=">=1"),
        "tensorboard": S(True, "write TensorBoard events"),
        "curve": S(True, "draw curve.png"),
    },
}

# What may differ when a run is resumed: it only prolongs, spreads or watches the run.
RESUMABLE = {"train.steps", "train.epochs", "train.tokens", "train.minutes", "train.attention",
             "train.rematerialise", "data.cache", "data.workers", "data.prefetch"}  # fmt: skip
RESUMABLE_SECTIONS = {"mesh", "checkpoint", "evaluation", "logging"}

SHORT_NAMES = {"init_from": "model.init_from"}  # of settings whose section says nothing


class Former(NamedTuple):
    """What became of a setting that older versions wrote into config.json."""

    name: str | None  # the setting's name now; None if it was removed
    values: Mapping[bool, str] = MappingProxyType({})  # if it was a switch: what replaces True and False


FORMER: dict[str, Former] = {
    "optimizer.decay": Former("optimizer.decay_mask"),
    "optimizer.rates": Former("optimizer.rate_multipliers"),
    "schedule.decay": Former("schedule.decay_steps"),
    "train.rematerialise": Former("train.rematerialise", {True: "full", False: "none"}),
    "debug.nan_at_step": Former(None),
}

PHASE_SETTINGS = {"steps": int, "sequence_length": int, "batch_size": int, "accumulate": int, "mask_rate": float,
                  "rotary_base": float, "learning_rate": float, "objective": str}  # fmt: skip
PHASE_OBJECTIVES = ("masked", "causal")  # that phases of one run may alternate between
