"""sentence-transformers directories: how they make vectors of texts, read and written, and copies of them."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.huggingface.copying import copy_files
from jaxlm.model.pooling import POOLINGS
from jaxlm.storage import read_json, write_text
from jaxlm.typed import Record, cut, listed, records

_CONFIG = "config_sentence_transformers.json"
# The first of these files that exists and is not empty has the settings of the Transformer module.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ROLES = ("query", "document")  # prompts that every model has; empty if the directory has none
_LEGACY_POOLINGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
                    "lasttoken")  # fmt: skip


class SentenceModel(NamedTuple):
    """How a sentence-transformers model makes vectors of the states of its encoder."""

    pooling: str  # as its Pooling module names it; "": it has none
    normalise: bool  # vectors are scaled to length 1, before any dimensions are removed
    longest: int | None = None  # maximum number of tokens, begin and end included; None: that of the tokenizer
    prompts: Mapping[str, str] = {}  # by name; a prompt is prepended to each text
    default_prompt: str = ""  # name of the one that is used if none is named; "": none
    pools_prompt: bool = True  # whether the tokens of the prompt are pooled
    dimensions: int = 0  # only the first of the vector are kept (Matryoshka); 0: all

    def prompt(self, name: str | None) -> str:
        """Returns the prompt with a name, as `encode(prompt_name=...)`; None is the default one, and "query" and
        "document" are those of encode_query and encode_document. Raises UserError."""
        if name is not None and name not in (*_ROLES, *self.prompts):
            raise UserError(f"prompt={cut(name)}: the model has no such prompt; it has {listed(self.prompts)}")
        prompt = self.prompts.get(self.default_prompt if name is None else name, "")
        if prompt and not self.pools_prompt:
            raise UserError(
                "the model sets include_prompt=false (pooling without the prompt), which jaxlm does not support"
            )
        return prompt

    def checked_pooling(self) -> str:
        """Returns the pooling. Raises UserError if it is not supported."""
        if not self.pooling:
            raise UserError("the model has no Pooling module; set the pooling with --pooling")
        if self.pooling not in POOLINGS:
            raise UserError(
                f"the model sets the pooling to {self.pooling}; jaxlm supports {', '.join(POOLINGS)}: set one with"
                " --pooling"
            )
        return self.pooling


def sentence_transformers_root(directory: Path) -> Path | None:
    """Returns the directory with modules.json: the model's own, or its parent if the file there names the model."""
    if (directory / "modules.json").is_file():
        return directory
    above = directory.parent / "modules.json"
    named = above.is_file() and any(
        module.text("path", "") == directory.name for module in records(above, read_json(above, list))
    )
    return directory.parent if named else None


def read_sentence_model(directory: Path) -> SentenceModel | None:
    """Returns what the sentence-transformers directory of a Transformer module says; None if it is in none.

    Raises UserError for modules and settings that are not supported; a pooling may be one that is not.
    """
    root = sentence_transformers_root(directory)
    if root is None:
        return None
    modules = _modules(root, directory)
    own = _transformer_config(directory)
    pooling = _optional(modules["Pooling"] / "config.json") if "Pooling" in modules else None
    settings = _optional(root / _CONFIG)
    prompts = settings.record("prompts", {})
    default = settings.text("default_prompt_name", "")
    if default:
        prompts.text(default)
    return SentenceModel(
        "" if pooling is None else _pooling(pooling),
        "Normalize" in modules,
        own.integer("max_seq_length", None, at_least=3),
        {name: prompts.text(name, "") for name in prompts.content},
        default,
        pooling is None or pooling.boolean("include_prompt", True),
        settings.integer("truncate_dim", None, at_least=1) or 0,
    )


def write_sentence_model(model: SentenceModel, width: int, pooler: bool, to: Path) -> None:
    """Writes what makes the directory of an encoder a sentence-transformers directory.

    The form is the older one, which newer versions read too. `width` is that of the encoder; `pooler` says whether its
    class in Transformers has a pooler, which would be new and is not needed.
    """
    kinds = {"Transformer": "", "Pooling": "1_Pooling"} | ({"Normalize": "2_Normalize"} if model.normalise else {})
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds.items())
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": width}
    pooling |= {
        f"pooling_mode_{name}": name.removesuffix("_tokens").removesuffix("_token") == model.pooling
        for name in _LEGACY_POOLINGS
    }
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling | {"include_prompt": model.pools_prompt},
        _TRANSFORMER_CONFIGS[0]: {"max_seq_length": model.longest, "do_lower_case": False}
        | ({"model_args": {"add_pooling_layer": False}} if pooler else {}),
        _CONFIG: {
            "model_type": "SentenceTransformer", "prompts": dict(model.prompts),
            "default_prompt_name": model.default_prompt or None, "similarity_fn_name": "cosine",
        } | ({"truncate_dim": model.dimensions} if model.dimensions else {}),
    }  # fmt: skip
    if model.normalise:
        files["2_Normalize/config.json"] = {"module_input_name": "sentence_embedding"}
    for name, content in files.items():
        (to / name).parent.mkdir(exist_ok=True)
        _write(to / name, content)


def write_dimensions(root: Path, dimensions: int) -> None:
    """Sets the number of dimensions that a sentence-transformers directory keeps."""
    _write(root / _CONFIG, _optional(root / _CONFIG).content | {"truncate_dim": dimensions})


def copy_modules(root: Path, directory: Path, to: Path) -> None:
    """Copies a sentence-transformers directory except its Transformer module, which `directory` contains: modules.json,
    the other modules, and the settings of the Transformer module. Raises UserError."""
    transformer = to if directory == root else to / directory.name
    copy_files(root, to, ["modules.json", _CONFIG, "README.md"])
    copy_files(directory, transformer, _TRANSFORMER_CONFIGS)
    for module in read_json(root / "modules.json", list):
        path = Path(str(module.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{root / 'modules.json'} has a module outside the directory: {path}")
        if (root / path).is_dir() and path.parts and root / path != directory:
            shutil.copytree(root / path, to / path)


def _modules(root: Path, directory: Path) -> dict[str, Path]:
    """Returns the folders of the modules by their kind. Raises UserError unless jaxlm computes what they compute."""
    file, kinds = root / "modules.json", dict[str, Path]()
    for module in records(file, read_json(file, list)):
        package, _, kind = module.text("type").rpartition(".")
        own = package.split(".")[0] == "sentence_transformers"
        if kind not in ("Transformer", "Pooling", "Normalize") or not own or kind in kinds:
            name = kind if own else f"{package}.{kind}"
            raise UserError(
                f"{file} has {'two modules' if kind in kinds else 'a module'} {cut(name)}, which jaxlm does not support"
            )
        kinds[kind] = root / module.text("path", "")
        if kind == "Normalize":
            where = _optional(kinds[kind] / "config.json")
            if "Pooling" not in kinds or where.text("module_input_name", "") not in ("", "sentence_embedding"):
                raise UserError(f"{file}: Normalize does not follow Pooling, which jaxlm does not support")
    if os.path.normpath(kinds.get("Transformer", "")) != os.path.normpath(directory):
        raise UserError(f"{file} has no Transformer module in {directory}, which has the weights; fetch it again")
    return kinds


def _transformer_config(directory: Path) -> Record:
    own = next((found for name in _TRANSFORMER_CONFIGS if (found := _optional(directory / name)).content),
               Record(directory, {}))  # fmt: skip
    if own.boolean("do_lower_case", False):
        raise UserError(f"{own.where} sets do_lower_case, which jaxlm does not support: set it in the tokenizer")
    if (task := own.text("transformer_task", "feature-extraction")) != "feature-extraction":
        raise UserError(f"{own.where} sets transformer_task={cut(task)}; jaxlm supports feature-extraction")
    return own


def _pooling(content: Record) -> str:
    """Returns the pooling set in 1_Pooling/config.json, in the older or the newer format; several are joined."""
    if "pooling_mode" in content.content:
        several = isinstance(content.content["pooling_mode"], list)
        modes = content.items("pooling_mode", str) if several else [content.text("pooling_mode")]
    else:
        modes = [
            name.removesuffix("_tokens").removesuffix("_token")
            for name in _LEGACY_POOLINGS
            if content.boolean(f"pooling_mode_{name}", False)
        ]
    return " and ".join(map(cut, modes)) or "mean"


def _optional(file: Path) -> Record:
    return Record(file, read_json(file) if file.is_file() else {})


def _write(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
