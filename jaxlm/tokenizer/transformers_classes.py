"""The tokenizer classes of Transformers: which one a directory names, and what it changes in a tokenizer.json.

Transformers builds most tokenizers from the vocabulary in tokenizer.json and the settings in tokenizer_config.json. It
ignores the normalizer and the pre-tokenizer in tokenizer.json; a setting that tokenizer_config.json lacks has the
default of the class. The ids here are those of Transformers 5.24.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizer.special_tokens import added_entries, config_beside, find_role_ids
from jaxlm.tokenizer.tokenizer_json import vocabulary_of
from jaxlm.typed import cut, shown

Definition = dict[str, Any]
_log = logging.getLogger("jaxlm")
AS_WRITTEN, WORD_PIECE, BYTE_LEVEL, UNIGRAM = "as written", "WordPiece", "BPE", "Unigram"  # kinds of classes
# Kind of each class, by its name without "Fast".
_CLASSES = {
    **dict.fromkeys(  # Transformers does not rebuild a tokenizer whose class has no `__init__` of its own
        ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "ConvBertTokenizer",
         "DPRQuestionEncoderTokenizer", "DPRContextEncoderTokenizer"),
        AS_WRITTEN,
    ),
    **dict.fromkeys(
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer",
         "LayoutLMTokenizer", "LxmertTokenizer", "MPNetTokenizer"),
        WORD_PIECE,
    ),
    **dict.fromkeys(
        ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer", "LEDTokenizer", "GPT2Tokenizer",
         "DebertaTokenizer"),
        BYTE_LEVEL,
    ),
    **dict.fromkeys(("XLMRobertaTokenizer", "CamembertTokenizer"), UNIGRAM),
}  # fmt: skip
_CLASS_OF_FAMILY = {  # model_type in config.json -> the class if neither file names one
    **dict.fromkeys(
        ("bert", "electra", "mobilebert", "convbert", "squeezebert", "layoutlm", "lxmert", "megatron-bert", "ernie",
         "nezha", "qdqbert", "nomic_bert", "distilbert"),
        "BertTokenizer",
    ),
    **dict.fromkeys(
        ("roberta", "roberta-prelayernorm", "longformer", "bart", "ibert", "data2vec-text"), "RobertaTokenizer"
    ),
    "mpnet": "MPNetTokenizer", "gpt2": "GPT2Tokenizer", "deberta": "DebertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "xmod": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer",
}  # fmt: skip
# Tokenizers of Transformers that use other ids than their .model: special tokens come first, the rest is shifted.
_RENUMBERED = (
    "XLMRoberta", "Camembert", "Barthez", "MBart", "PLBart", "XGLM", "Nllb", "BertJapanese", "Albert", "XLNet", "FNet",
    "DebertaV2",
)  # fmt: skip
# Transformers always uses tokenizer.json as written for these families, whatever class is named.
_AS_WRITTEN_FAMILIES = ("modernbert", "modernbert-decoder", "xlm-roberta-xl")


def tokenizer_class(file: Path) -> tuple[str, str]:
    """Returns the name of the class of the vocabulary `file`, without "Fast", and its kind.

    The name is that in tokenizer_config.json, in config.json, or of the family in config.json; "" if there is none, and
    then the file is used as written. Raises UserError for a class that is not supported.
    """
    if setting(file, "split_special_tokens", False):
        raise UserError(
            f"{file.with_name('tokenizer_config.json')} sets split_special_tokens, with which Transformers finds no"
            " special token in a text; jaxlm does not support it: remove the key"
        )
    family = config_beside(file, "config.json").text("model_type", "")
    if family in _AS_WRITTEN_FAMILIES:
        return "", AS_WRITTEN
    for where in ("tokenizer_config.json", "config.json"):
        if name := config_beside(file, where).text("tokenizer_class", ""):
            short = name.removesuffix("Fast")
            if short not in _CLASSES:
                raise UserError(
                    f"{file.with_name(where)} names the tokenizer class {cut(name)}, which is not supported; if a"
                    ' tokenizer.json defines the whole tokenizer, set "tokenizer_class": "PreTrainedTokenizerFast"'
                )
            return short, _CLASSES[short]
    if not family:
        return "", AS_WRITTEN
    if family not in _CLASS_OF_FAMILY:
        raise UserError(
            f"{file.with_name('config.json')} has the family {shown(family)}, whose tokenizer class is not known; name"
            ' the class in tokenizer_config.json, such as "tokenizer_class": "PreTrainedTokenizerFast"'
        )
    name = _CLASS_OF_FAMILY[family]
    return name, _CLASSES[name]


def require_sentencepiece(file: Path) -> None:
    """Raises UserError if the class of a .model file has other token ids than the file."""
    model = config_beside(file, "config.json")
    names = [config.text("tokenizer_class", "") for config in (config_beside(file, "tokenizer_config.json"), model)]
    name = next(filter(None, [*names, _CLASS_OF_FAMILY.get(model.text("model_type", ""))]), "")
    if name.startswith(_RENUMBERED):
        raise UserError(
            f"{file} is the model of a {name}, whose token ids differ from those in the file; use its tokenizer.json,"
            " which Transformers writes with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def require_kind(file: Path, *kinds: str) -> None:
    """Raises UserError if the class of a vocabulary file does not read such a file."""
    name, kind = tokenizer_class(file)
    if kind not in (AS_WRITTEN, *kinds):
        raise UserError(
            f"{file} is the vocabulary of a {name}, which is not supported; use its tokenizer.json, which Transformers"
            " writes with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def setting(file: Path, name: str, default: bool | None) -> bool | None:
    """Returns a setting of the tokenizer_config.json beside a file that is true, false or null, or its default."""
    return config_beside(file, "tokenizer_config.json").boolean(name, default)


def as_transformers(file: Path, definition: Definition) -> Definition:
    """Returns the definition of the tokenizer that Transformers makes of the tokenizer.json `file`.

    Raises UserError if the class is not supported, or needs another kind of vocabulary.
    """
    name, kind = tokenizer_class(file)
    model = definition["model"]
    if kind != AS_WRITTEN and model.get("type", kind) != kind:
        raise UserError(
            f"{file} has a vocabulary of the type {model['type']}, but its tokenizer class {name} needs {kind}; name"
            " the right tokenizer_class in tokenizer_config.json"
        )
    rebuilt = _REBUILD[kind](file, definition) if kind in _REBUILD else definition
    own = definition.get("added_tokens") or []
    vocabulary = vocabulary_of(definition | {"added_tokens": []})
    found = rebuilt | {"added_tokens": added_entries(file, own, vocabulary, keep=kind == AS_WRITTEN)}
    if kind == AS_WRITTEN and config_beside(file, "config.json").text("model_type", ""):
        _warn_of_frame(file, found)
    return found


def _warn_of_frame(file: Path, definition: Definition) -> None:
    """Warns if Transformers puts other tokens around a text than a begin and an end token, as jaxlm always does."""
    import tokenizers

    vocabulary = vocabulary_of(definition)
    role_ids = find_role_ids(file, vocabulary)
    parts: Definition = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
    parts["post_processor"] = definition.get("post_processor")
    try:
        around = tokenizers.Tokenizer.from_str(json.dumps(parts)).encode("").ids
    except Exception as error:  # the library raises no specific class
        raise UserError(f"{file} has a post_processor that the `tokenizers` library cannot load: {error}") from error
    if around != [role_ids["begin"], role_ids["end"]]:
        tokens = {id: token for token, id in vocabulary.items()}
        _log.warning(
            "%s: Transformers puts %s around a text, but jaxlm always puts %s and %s, so vectors and logits differ;"
            " change its post_processor if the model was trained with both tokens",
            file, " and ".join(tokens.get(id, str(id)) for id in around) or "no token",
            tokens[role_ids["begin"]], tokens[role_ids["end"]],
        )  # fmt: skip


def bert_normalizer(file: Path, lower_case: bool) -> dict[str, Any]:
    """Returns the normalizer of BERT with the settings of the tokenizer_config.json beside a file."""
    return {
        "type": "BertNormalizer", "clean_text": True,
        "handle_chinese_chars": setting(file, "tokenize_chinese_chars", True),
        "strip_accents": setting(file, "strip_accents", None), "lowercase": lower_case,
    }  # fmt: skip


def byte_level_step(file: Path) -> dict[str, Any]:
    """Returns the pre-tokenizer of RoBERTa with the settings of the tokenizer_config.json beside a file."""
    prefix = setting(file, "add_prefix_space", False)
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}


def _word_piece(file: Path, definition: Definition) -> Definition:
    normalizer = bert_normalizer(file, bool(setting(file, "do_lower_case", True)))
    _log_changes(file, definition.get("normalizer"), normalizer)
    model = definition["model"] | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return definition | {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": model}


def _byte_level(file: Path, definition: Definition) -> Definition:
    step = byte_level_step(file)
    _log_changes(file, definition.get("pre_tokenizer"), step)
    model = definition["model"] | {
        "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
        "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return definition | {"normalizer": None, "pre_tokenizer": step, "decoder": step, "model": model}


def _unigram(file: Path, definition: Definition) -> Definition:
    scheme = "always" if setting(file, "add_prefix_space", True) else "never"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    steps = definition.get("normalizer") or {}
    steps = steps.get("normalizers", []) if steps.get("type") == "Sequence" else [steps]
    precompiled = next((step for step in steps if step.get("type") == "Precompiled"), None)
    return definition | {
        "normalizer": precompiled, "decoder": metaspace,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "model": definition["model"] | {"byte_fallback": False},
    }  # fmt: skip


_REBUILD: dict[str, Callable[[Path, Definition], Definition]] = {
    WORD_PIECE: _word_piece, BYTE_LEVEL: _byte_level, UNIGRAM: _unigram,
}  # fmt: skip
_NAMES = {
    "lowercase": "do_lower_case",
    "handle_chinese_chars": "tokenize_chinese_chars",
    "strip_accents": "strip_accents",
    "add_prefix_space": "add_prefix_space",
}


def _log_changes(file: Path, written: Any, used: dict[str, Any]) -> None:
    """Logs the settings of a step of tokenizer.json that Transformers replaces by others."""
    written = written if isinstance(written, dict) else {}
    changed = {
        _NAMES[name]: used[name] for name in _NAMES if name in written and name in used and written[name] != used[name]
    }
    if changed:
        values = ", ".join(f"{name}={value}" for name, value in changed.items())
        _log.warning(
            "%s: as in Transformers, tokenizer_config.json and the defaults of the class %s apply (%s), not the "
            "settings in %s", file, tokenizer_class(file)[0], values, file.name,
        )  # fmt: skip
