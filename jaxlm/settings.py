"""Every setting of a run: its default, its meaning, and the values it accepts. `jaxlm config` prints this table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxlm.setting_type import Setting
from jaxlm.task_settings import TASK_SETTINGS

REQUIRED = "REQUIRED"  # model.init_from of a recipe for weights that exist already: the user has to name them
MAX_CHOSEN_VOCABULARY = 8192  # entries; bench and plan assume them if tokenizer.vocab_size is 0
# Larger values are mistakes, or the marks of a damaged file: without a limit, they would take hours and all memory.
LARGEST_INTEGERS = {
    "model.layers": 1000, "model.width": 2**20, "model.heads": 2**16, "model.head_width": 2**20,
    "model.feed_forward_width": 2**22, "model.embedding_width": 2**20,
    "model.vocab_size": 2**26, "model.max_positions": 2**26, "model.token_types": 2**16,
    "model.position_offset": 2**26, "model.window": 2**31 - 1, "tokenizer.vocab_size": 2**24,
    "data.sequence_length": 2**26, "data.workers": 4096, "data.prefetch": 2**16, "train.batch_size": 2**26,
    "train.accumulate": 2**26, "evaluation.batch_size": 2**26, "masking.span_max": 2**16,
}  # fmt: skip

S = Setting

SETTINGS: dict[str, dict[str, Setting]] = {
    "data": {
        "path": S(
            (), "training text: files, folders, globs, 'tfds:NAME[:SPLIT]' or 'pydocs'; separate several with commas"
        ),
        "weights": S(
            (),
            "relative number of rows from each path, such as 9,1; empty: every row of every path once per epoch",
            item=float,
        ),
        "format": S(
            "auto",
            "file format; auto: chosen by the file name",
            ("auto", "text", "jsonl", "csv", "tsv", "parquet"),
        ),
        "document": S("file", "unit of a text file that is one document", ("file", "paragraph", "line")),
        "field": S("text", "field or column that contains the text (JSON Lines, CSV, TSV, Parquet, TFDS)"),
        "encoding": S("utf-8", "character encoding of text, JSON Lines, CSV and TSV files"),
        "held_out": S((), "held-out sets with their own files, as NAME=PATH; separate several with commas"),
        "held_out_fraction": S(
            0.01,
            "fraction of documents held out, selected by a hash of their text, if data.held_out is empty",
            within="[0,1)",
        ),
        "deduplicate": S(True, "drop documents whose text occurred before or is in a held-out set"),
        "max_document_characters": S(
            1_000_000, "longer documents are truncated to this length, at a space if possible", within=">=1"
        ),
        "max_megabytes": S(
            None, "read only about this many megabytes of each path; none: everything", within=">0", kind=float
        ),
        "sequence_length": S(128, "tokens per row", within=">=1"),
        "packing": S(
            "documents",
            "how documents fill the rows of training; documents: rows are full, and a token attends to its own"
            " document; across: rows are full, and a token attends to all of its row; none: a row holds one document,"
            " or a piece of one, and padding",
            ("documents", "across", "none"),
        ),
        "prepend_begin": S(
            False, "put the begin token before rows that start inside a document, so that they begin as at inference"
        ),
        "shard_bytes": S(256 * 2**20, "maximum size of a file of the token store, in bytes", within=">=1"),
        "cache": S("", "folder of token stores, shared by runs; empty: ~/.cache/jaxlm/stores"),
        "workers": S(0, "processes that tokenize; 0: one per processor", within=">=0"),
        "prefetch": S(4, "batches prepared in advance", within=">=1"),
    },
    "tokenizer": {
        "path": S(
            "",
            "a .model, tokenizer.json or vocab.txt file, or a folder that contains one; empty: train a SentencePiece"
            " vocabulary on the data",
        ),
        "add": S("", "file of tokens, one per line, to add to the vocabulary of tokenizer.path or init_from"),
        "algorithm": S("unigram", "algorithm of the trained vocabulary", ("unigram", "bpe")),
        "vocab_size": S(
            0,
            "entries of the trained vocabulary, special tokens included; 0: chosen by the size of the text, at most"
            f" {MAX_CHOSEN_VOCABULARY}",
            within=">=0",
        ),
        "lower_case": S(False, "the trained vocabulary lower-cases text"),
        "character_coverage": S(
            0.9995,
            "fraction of the characters in the text that the trained vocabulary covers, if its different characters are"
            " more than a quarter of the entries; the rest become unknown tokens, or bytes with byte_fallback",
            within="(0,1]",
        ),
        "split_han": S(
            False, "pieces of the trained vocabulary contain at most one Chinese character, as in BERT's vocabulary"
        ),
        "byte_fallback": S(False, "encode unknown characters as bytes (256 additional entries)"),
        "training_megabytes": S(
            32.0, "megabytes of text, sampled evenly over the documents, to train the vocabulary on", within=">0"
        ),
        "words": S(
            "unicode",
            "word segmenter: Unicode word boundaries, jieba (Chinese), ICU (Thai, Lao, Khmer, Burmese), or the spaces"
            " of text that is already segmented",
            ("unicode", "jieba", "icu", "spaces"),
        ),
    },
    "model": {
        "init_from": S(
            "",
            "Hugging Face directory or work directory whose weights, architecture and tokenizer the run starts from;"
            " short form: --config.init_from",
        ),
        "extend_positions": S(
            "refuse",
            "how to fill position embeddings beyond those of init_from when model.max_positions is larger: repeat the"
            " rows, interpolate between them, or refuse",
            ("refuse", "repeat", "interpolate"),
        ),
        "reinitialize_layers": S(
            0,
            "number of top layers that start from new weights, not from those of init_from, and the layers of its head"
            " with them (arXiv 2006.05987)",
            within=">=0",
        ),
        "remove_layers": S(
            "refuse",
            "how to choose the layers of init_from that are removed when model.layers is smaller: top: the top ones"
            " (arXiv 2004.03844); spread: the first, the last, and as many evenly between them remain, as in DistilBERT"
            " (arXiv 1910.01108); or refuse",
            ("refuse", "top", "spread"),
        ),
        "remove_units": S(
            "refuse",
            "how to choose the feed-forward units of init_from that are removed when model.feed_forward_width is"
            " smaller: those with the smallest weights in each layer, or refuse",
            ("refuse", "magnitude"),
        ),
        "remove_heads": S(
            "refuse",
            "how to choose the attention heads of init_from that are removed when model.heads is smaller: those with"
            " the smallest weights in each layer, or refuse",
            ("refuse", "magnitude"),
        ),
        "layers": S(4, "number of Transformer layers", within=">=1"),
        "width": S(256, "width of the hidden states", within=">=1"),
        "heads": S(4, "attention heads; must divide model.width unless model.head_width is set", within=">=1"),
        "head_width": S(0, "width of an attention head; 0: model.width / model.heads", within=">=0"),
        "feed_forward_width": S(
            1024, "hidden width of the feed-forward network; with a gate, the width of each half", within=">=1"
        ),
        "embedding_width": S(
            0, "width of the embedding tables; 0: model.width; any other width is projected to it", within=">=0"
        ),
        "vocab_size": S(0, "rows of the token embedding table; 0: the tokenizer's size", within=">=0"),
        "norm": S("layer_norm", "type of normalization", ("layer_norm", "rms_norm")),
        "norm_position": S(
            "pre", "pre: before each sublayer; post: after each residual sum, as in BERT", ("pre", "post")
        ),
        "norm_epsilon": S(1e-5, "epsilon added to the variance", within=">0"),
        "norm_bias": S(True, "use biases in the norms"),
        "attention_bias": S(True, "use biases in the query, key, value and output projections"),
        "feed_forward_bias": S(True, "use biases in the feed-forward network"),
        "first_norm": S(
            False, "with norm_position=pre, use the attention norm of the first layer; ModernBERT omits it"
        ),
        "embedding_norm": S(True, "normalize the embeddings"),
        "activation": S(
            "relu_squared",
            "activation of the feed-forward network; geglu, swiglu and reglu are gated",
            ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "geglu", "swiglu", "reglu"),
        ),
        "positions": S("rotary", "type of position encoding", ("learned", "rotary", "alibi", "none")),
        "max_positions": S(512, "rows of the learned position table", within=">=1"),
        "position_offset": S(0, "row of the position table for the first position; 2 in RoBERTa", within=">=0"),
        "rotary_base": S(10_000.0, "base of the rotary frequencies in global layers", within=">1"),
        "local_rotary_base": S(10_000.0, "base of the rotary frequencies in local layers", within=">1"),
        "layer_pattern": S(
            "g",
            "attention of the layers, repeated over them: g (global: the whole document), l (local: a window);"
            " ModernBERT's is gll",
        ),
        "window": S(128, "attention window of local layers in tokens: half of it on each side", within=">=1"),
        "value_residual": S(
            0.0,
            "fraction of the first layer's attention values mixed into those of each later layer; 0.5 in the paper"
            " (arXiv 2410.17897)",
            within="[0,1)",
        ),
        "token_types": S(0, "rows of the token-type table; 0: no table", within=">=0"),
        "tied_output": S(True, "use the token embedding table as the output projection"),
        "output_bias": S(True, "use a bias for the vocabulary logits"),
        "output_bias_from_frequencies": S(
            False, "initialize the output bias with the log frequencies of tokens in the training text"
        ),
        "head_transform": S(True, "use a dense layer, an activation and a norm between encoder and logits, as BERT"),
        "head_bias": S(True, "use a bias in the head's dense layer"),
        "head_activation": S(
            "gelu",
            "activation of the head's dense layer",
            ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "none"),
        ),
        "dropout": S(0.0, "dropout rate after the embeddings and each sublayer", within="[0,1)"),
        "attention_dropout": S(0.0, "dropout rate of the attention weights", within="[0,1)"),
        "initialization": S(
            "normal",
            "normal: truncated at two standard deviations; depth_scaled: as normal, with residual output projections"
            " divided by sqrt(2 layers); zero_output: as normal, with output projections and logits at zero",
            ("normal", "depth_scaled", "zero_output"),
        ),
        "initialization_std": S(0.02, "standard deviation of the initial weights", within=">0"),
    },
    "masking": {
        "scheme": S("token", "unit that is masked as a whole", ("token", "whole_word", "span")),
        "rate": S(0.15, "fraction of a row's ordinary tokens that are predicted", within="(0,1)"),
        "final_rate": S(
            None,
            "rate at the end of the run, to which masking.rate changes linearly; none: the rate stays constant",
            kind=float,
            within="(0,1)",
        ),
        "mask_share": S(0.8, "fraction of the predicted tokens replaced by the mask token", within="[0,1]"),
        "random_share": S(
            0.1,
            "fraction of the predicted tokens replaced by a random ordinary token; the others are left unchanged",
            within="[0,1]",
        ),
        "span_p": S(
            0.2,
            "parameter of the geometric distribution of span lengths in words; 0.2, clipped at 10, has mean 3.8",
            within="(0,1]",
        ),
        "span_max": S(10, "maximum length of a span in words", within=">=1"),
    },
    "train": {
        "objective": S(
            "masked",
            "masked: predict masked tokens; causal: predict each token from those before it; the others learn from"
            " labelled examples (section task). classification: one label per example; multi_label: several;"
            " regression: a number; tagging: a tag per word; span: the part of a context that answers a question;"
            " embedding: vectors whose cosine says what belongs together; reranking: whether a passage answers a"
            " query; choice: which of several texts is right; template: the word of a label at the mask in a text",
            (
                "masked",
                "causal",
                "classification",
                "multi_label",
                "regression",
                "tagging",
                "span",
                "embedding",
                "reranking",
                "choice",
                "template",
            ),
        ),
        "steps": S(
            None, "stop after this many updates; set one of steps, epochs, tokens, minutes", kind=int, within=">0"
        ),
        "epochs": S(None, "stop after this many passes over the data", kind=float, within=">0"),
        "tokens": S(None, "stop after this many tokens", kind=float, within=">0"),
        "minutes": S(
            None,
            "stop after this many minutes of training, evaluations and saves included; the schedule then follows"
            " elapsed time",
            kind=float,
            within=">0",
        ),
        "count_compilation": S(
            False,
            "train.minutes also counts the time before the first step has finished and the compilation of each phase",
        ),
        "batch_size": S(32, "rows, or labelled examples, in the global batch", within=">=1"),
        "accumulate": S(
            1, "micro-batches per update, computed one after another; the result is that of one batch", within=">=1"
        ),
        "phases": S(
            (),
            "settings that change during the run, as a JSON list with one object per phase: steps (required but in the"
            " last), sequence_length, batch_size, accumulate, mask_rate, learning_rate, rotary_base, objective (masked,"
            " causal)",
            item=dict,
        ),
        "seed": S(0, "seed of initialization, data order, masks and dropout", within=">=0"),
        "init_seed": S(None, "seed of the initial weights; none: train.seed", kind=int, within=">=0"),
        "data_seed": S(None, "seed of the order of rows; none: train.seed", kind=int, within=">=0"),
        "mask_seed": S(None, "seed of masks and dropout; none: train.seed", kind=int, within=">=0"),
        "compute_dtype": S(
            "auto",
            "dtype of matrix products; auto: bfloat16 where the hardware is fast at it, else float32",
            ("auto", "float32", "bfloat16"),
        ),
        "deterministic": S(False, "use deterministic operations on GPUs, which are slower"),
        "attention": S(
            "auto",
            "attention kernel; auto: flash on GPUs and splash on TPUs if they support the model, else xla",
            ("auto", "xla", "flash", "splash"),
        ),
        "rematerialise": S(
            "none",
            "values that the backward pass recomputes to save memory; attention: attention weights; dots: all but the"
            " outputs of products with parameters and of attention; full: whole layers",
            ("none", "attention", "dots", "full"),
        ),
        "logits_megabytes": S(
            0,
            "compute vocabulary logits in chunks of at most this many megabytes per device; 0: 256, or 1/32 of an"
            " accelerator's memory",
            within=">=0",
        ),
    },
    "task": TASK_SETTINGS,
    "optimizer": {
        "name": S("adamw", "muon: for the matrices of layers, with AdamW for the rest", ("adamw", "lamb", "muon")),
        "learning_rate": S(1e-3, "peak learning rate", within="(0,1]"),
        "muon_learning_rate": S(0.02, "peak learning rate of matrices that muon updates", within="(0,1]"),
        "muon_momentum": S(0.95, "momentum of matrices that muon updates", within="[0,1)"),
        "beta1": S(0.9, "decay rate of the running mean of gradients", within="[0,1)"),
        "beta2": S(0.98, "decay rate of the running mean of squared gradients", within="[0,1)"),
        "epsilon": S(1e-8, "epsilon added to the square root of the second moment", within=">0"),
        "weight_decay": S(0.01, "decoupled weight decay, multiplied by the learning rate", within=">=0"),
        "decay_mask": S(
            ("/(kernel|embedding)$=yes", "/(bias|scale)$=no"),
            "parameters with weight decay, as PATTERN=yes or PATTERN=no; the first pattern found in a parameter's path"
            " applies",
        ),
        "rate_multipliers": S(
            (),
            "multipliers of the learning rate (and so of weight decay), as PATTERN=FACTOR; the first pattern found in a"
            " parameter's path applies, else 1; embeddings, encoder, head and layers:0-5 are patterns too",
        ),
        "layer_decay": S(
            1.0,
            "learning rate of each layer relative to the layer above it; of n layers, the last has layer_decay, the"
            " first layer_decay^n, the embeddings layer_decay^(n+1), the head 1",
            within="(0,1]",
        ),
        "freeze": S(
            (),
            "parameters that are not trained: embeddings, encoder, head, layers:0-5, layers:0,1,2 or patterns of"
            " parameter paths; a tied output belongs to the embeddings",
        ),
        "clip_norm": S(1.0, "maximum global norm of the gradients; 0: no clipping", within=">=0"),
        "average": S(
            0.0,
            "decay of a running average of the parameters, which is evaluated, saved and exported in their place, such"
            " as 0.999; lower in the first updates; 0: none",
            within="[0,1)",
        ),
    },
    "pruning": {
        "sparsity": S(
            0.0, "fraction of the weights of pruning.parameters that are 0 in the end; 0: none", within="[0,1)"
        ),
        "method": S(
            "magnitude",
            "weights that are set to 0 first: those of the lowest magnitude, or those that training moves towards 0 the"
            " most",
            ("magnitude", "movement"),
        ),
        "parameters": S(
            (r"/layers_\d+/.*kernel$",),
            "matrices whose weights compete: embeddings, head, layers:0-5, layers:0,1,2 or patterns of parameter paths",
        ),
        "begin": S(0.0, "fraction of the run after which pruning begins", within="[0,1]"),
        "end": S(0.5, "fraction of the run after which pruning.sparsity is reached; 0: at once", within="[0,1]"),
        "every": S(10, "updates between two steps of pruning", within=">=1"),
    },
    "schedule": {
        "name": S(
            "linear",
            "learning rate after the warm-up: linear decay, cosine decay, constant with a decay at the end (wsd), or"
            " constant",
            ("linear", "cosine", "wsd", "constant"),
        ),
        "warmup": S(0.06, "steps of linear warm-up; below 1: fraction of the run", within=">=0"),
        "decay_steps": S(0.1, "wsd: steps of the decay at the end; below 1: fraction of the run", within=">=0"),
        "decay_shape": S("linear", "wsd: shape of the decay; 1-sqrt is steepest at its start", ("linear", "1-sqrt")),
        "final": S(0.0, "learning rate at the end as a fraction of the peak rate", within="[0,1]"),
    },
    "mesh": {
        "slices": S(0, "number of TPU slices, the outermost split of the batch; 0: all that exist", within=">=0"),
        "data": S(-1, "devices per slice that split the batch; -1: all that remain"),
        "fsdp": S(1, "devices that split both the batch and the parameters", within=">=1"),
        "tensor": S(1, "devices that split the widths of matrices", within=">=1"),
        "coordinator": S(
            "auto",
            "HOST:PORT of the first of several processes; auto: detected from the environment of Slurm, Open MPI or a"
            " TPU pod if there are several; detect: any environment that JAX detects, including Kubernetes and Google"
            " Cloud TPU VMs",
        ),
        "processes": S(0, "number of processes, if mesh.coordinator is HOST:PORT", within=">=0"),
        "process_id": S(-1, "index of this process from 0, if mesh.coordinator is HOST:PORT"),
        "heartbeat_seconds": S(
            30.0, "a process that is silent for this many seconds is considered dead, and ends the others", within=">=1"
        ),
    },
    "checkpoint": {
        "every": S(
            1000,
            "maximum number of steps lost if the run is killed; checkpoints start at multiples of it and midway",
            within=">=1",
        ),
        "keep": S(2, "number of newest checkpoints to keep", within=">=1"),
        "keep_best": S(
            True,
            "also save at each evaluation that improves the selecting metric (the loss on the first held-out set, or"
            " task.metric), and keep the best of these checkpoints",
        ),
    },
    "evaluation": {
        "every": S(1000, "steps between evaluations on the held-out sets; 0: only at the end", within=">=0"),
        "rows": S(512, "number of rows of each held-out set to evaluate on, from its start; 0: all", within=">=0"),
        "batch_size": S(0, "rows per evaluation batch; 0: train.batch_size", within=">=0"),
        "per_epoch": S(
            0.0, "labelled examples: evaluations per epoch; above 0, it replaces evaluation.every", within=">=0"
        ),
        "select": S(
            "split",
            "labelled examples: what selects the best checkpoint; split: a part of task.train that is not trained on,"
            " chosen by hash; NAME: that evaluation set, whose figures are then optimistic; none: the last checkpoint"
            " is reported",
        ),
        "select_fraction": S(0.1, "fraction of task.train that is kept for selection", within="(0,1)"),
        "calibrate": S(
            True,
            "labelled examples: fit a temperature for the probabilities of labels at the end, on the set that selects;"
            " predictions use it",
        ),
        "patience": S(
            0, "labelled examples: stop after this many evaluations without a better one; 0: never", within=">=0"
        ),
    },
    "logging": {
        "every": S(10, "steps between lines of metrics.jsonl", within=">=1"),
        "tensorboard": S(True, "write TensorBoard events"),
        "curve": S(True, "draw curve.png"),
        "wandb": S("", "project of Weights & Biases to log to as well; empty: none"),
        "trackio": S("", "project of Trackio to log to as well; empty: none"),
    },
}

# Settings that may change when a run is resumed: they extend it, distribute it or monitor it.
RESUMABLE = {"train.steps", "train.epochs", "train.tokens", "train.minutes", "train.count_compilation",
             "train.attention", "train.rematerialise", "data.cache", "data.workers", "data.prefetch",
             "task.submission"}  # fmt: skip
RESUMABLE_SECTIONS = {"mesh", "checkpoint", "evaluation", "logging"}

SHORT_NAMES = {"init_from": "model.init_from"}  # settings that need no section on the command line


class Former(NamedTuple):
    """What became of a setting that older versions wrote into config.json."""

    name: str | None  # the setting's name now; None if it was removed
    values: Mapping[bool | str, str] = MappingProxyType({})  # what replaces values that no longer exist


FORMER: dict[str, Former] = {
    "optimizer.decay": Former("optimizer.decay_mask"),
    "optimizer.rates": Former("optimizer.rate_multipliers"),
    "schedule.decay": Former("schedule.decay_steps"),
    "train.rematerialise": Former("train.rematerialise", {True: "full", False: "none"}),
    "train.objective": Former("train.objective", {"classify": "classification"}),
    "debug.nan_at_step": Former(None),
}

PHASE_SETTINGS = {"steps": int, "sequence_length": int, "batch_size": int, "accumulate": int, "mask_rate": float,
                  "rotary_base": float, "learning_rate": float, "objective": str}  # fmt: skip
PHASE_OBJECTIVES = ("masked", "causal")  # that phases of one run may alternate between
