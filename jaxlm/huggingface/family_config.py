"""Which family of Transformers expresses an architecture, and the config.json that describes it there."""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.families import FAMILIES, Family
from jaxlm.huggingface.refit import refit
from jaxlm.model.config import EncoderConfig


def choose_family(encoder: EncoderConfig, wanted: str | None = None) -> Family:
    """Returns the family `wanted`, or else the first that can express an encoder. Raises UserError that names the
    settings that the family cannot express."""
    check_family(wanted)
    family, lacking = nearest_family(encoder, wanted)
    check_lacking(family, lacking, bool(wanted))
    return family


def check_family(wanted: str | None) -> None:
    """Raises UserError for the name of a family that is not supported."""
    if wanted is not None and wanted not in FAMILIES:
        raise UserError(f"the family {wanted} is not supported; supported are {', '.join(sorted(FAMILIES))}")


def check_lacking(family: Family, lacking: list[str], wanted: bool) -> None:
    """Raises UserError that names the settings that a family lacks, the nearest one or the one that was wanted."""
    if lacking:
        nearest = "the family" if wanted else "no Transformers encoder has all of these settings; the nearest family"
        raise UserError(f"{nearest} {family.name} cannot express {', '.join(lacking)}")


def nearest_family(encoder: EncoderConfig, wanted: str | None = None) -> tuple[Family, list[str]]:
    """Returns the family `wanted`, or else the first that lacks the fewest settings of an encoder, and those settings,
    such as `model.positions=alibi`."""
    names = [wanted] if wanted else family_order(encoder)
    lacking = {name: lacking_settings(encoder, FAMILIES[name]) for name in names}
    name = min(lacking, key=lambda name: len(lacking[name]))  # the first if several are equal
    return FAMILIES[name], lacking[name]


def family_order(encoder: EncoderConfig) -> list[str]:
    """Returns the names of the families in the order in which they are tried for an encoder."""
    return ["roberta" if encoder.position_offset else "bert", *FAMILIES]


def lacking_settings(encoder: EncoderConfig, family: Family, ignored: Collection[str] = ()) -> list[str]:
    """Returns the settings of an encoder that a family lacks, such as `model.positions=alibi`."""
    lacking = [field for field in _inexpressible(encoder, family) if field not in ignored]
    return [f"model.{field}={getattr(encoder, field)}" for field in lacking]


def _inexpressible(encoder: EncoderConfig, family: Family) -> list[str]:
    """Returns the fields that change when config.json is written and read back."""
    encoder = refit(encoder, family, 0)
    config = config_for(encoder, family, encoder.max_positions, dict.fromkeys(("pad", "begin", "end"), 0))
    settings = dict(family.fixed)
    for key in family.keys:
        try:
            settings[key.ours] = key.read(dotted(config, key.theirs, key.default))
        except (KeyError, TypeError, ValueError):
            settings[key.ours] = None
    settings["embedding_width"] = settings["embedding_width"] or settings["width"]
    expressed = _effective(dataclasses.replace(encoder, **settings))
    return [name for name, value in _effective(encoder).items() if expressed.get(name) != value]


def _effective(encoder: EncoderConfig) -> dict[str, Any]:
    """Returns the fields that affect the output of a trained encoder."""
    fields = dataclasses.asdict(encoder)
    without_effect = {"dropout", "attention_dropout", "initialization", "initialization_std",
                      "output_bias_from_frequencies", "position_offset"}  # fmt: skip
    pattern = "".join("l" if encoder.is_local(layer) else "g" for layer in range(encoder.layers))
    fields["layer_pattern"] = pattern
    if "l" not in pattern:
        without_effect |= {"window", "local_rotary_base"}
    else:
        fields["window"] = encoder.window // 2
    if encoder.positions != "rotary":
        without_effect |= {"rotary_base", "local_rotary_base"}
    if encoder.positions != "learned":
        without_effect |= {"max_positions"}
    if not encoder.head_transform:
        without_effect |= {"head_bias", "head_activation"}
    if encoder.norm_position == "post":
        without_effect |= {"first_norm"}
    return {name: value for name, value in fields.items() if name not in without_effect}


def config_for(
    encoder: EncoderConfig,
    family: Family,
    longest: int,
    special_ids: dict[str, int],
    base: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the content of config.json: `base`, the config of the original checkpoint if any, with the changed keys.

    special_ids has the tokenizer's ids of "pad", "begin" and "end".
    """
    config: dict[str, Any] = dict(base or {})
    for name, role in family.special_ids.items():
        if base is None or config.get(name) is not None:
            config[name] = special_ids[role]
    for key in family.keys:
        value = getattr(encoder, key.ours)
        known = dotted(config, key.theirs, None)
        if base is None or known is None or key.read(known) != value:  # otherwise base's spelling stays
            _set_dotted(config, key.theirs, key.write(value, encoder))
    if encoder.positions == "rotary" and (base is None or config["max_position_embeddings"] < longest):
        config["max_position_embeddings"] = longest
    older = family.older_keys(encoder)
    config |= older if base is None else {name: value for name, value in older.items() if name in base}
    return config | {"model_type": family.name}


def dotted(config: dict[str, Any], path: str, default: Any) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return default if value is None else value


def _set_dotted(config: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for name in outer:
        config[name] = dict(config.get(name) or {})
        config = config[name]
    config[last] = value
