"""Reads prepared TensorFlow Datasets: `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.formats import missing_field, text_of


def tfds_files(path: str) -> list[tuple[str, Path]]:
    """Returns ("SPLIT/FILE NAME", file) for the files of a data set, sorted by name. Raises UserError."""
    builder, split = _prepared_builder(path)
    folder = Path(builder.data_path)
    return [(f"{split}/{file.name}", file) for file in sorted(folder.iterdir()) if file.is_file()]


def read_tfds(path: str, settings: Any) -> Iterator[str]:
    """Yields the text of each example of a split in order: its field `settings.field`.

    Raises UserError if the data set, the split or the field does not exist, or an example holds no valid text.
    """
    builder, split = _prepared_builder(path)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")
    features = list(builder.info.features)
    if settings.field not in features:
        raise missing_field(settings.field, features, path)
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: there is no split {split}; choose one of: {', '.join(builder.info.splits)}"
        ) from error
    dataset = dataset.map(lambda example: example[settings.field])
    for number, value in enumerate(tfds.as_numpy(dataset)):
        place = f"{path}, example {number}"
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: the field {settings.field} is not valid UTF-8; set data.field to a field with text"
            ) from error
        yield text_of({settings.field: text}, settings.field, place)


def _prepared_builder(path: str) -> tuple[Any, str]:
    """Returns the builder and the split of a path. Raises UserError if its data are not on this machine."""
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", path)
    if not match:
        raise UserError(f"{path}: expected tfds:NAME[/CONFIG][:VERSION][:SPLIT], such as tfds:imdb_reviews:train")
    name, split = match[1], match[2] or "train"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError, AttributeError) as error:
        root = tfds.core.constants.DATA_DIR
        raise UserError(
            f"{path}: TFDS has no data set {name}, and {root}/{name} does not exist; check the name, or set "
            "TFDS_DATA_DIR to the folder that holds the data"
        ) from error
    if not builder.is_prepared():
        raise UserError(
            f"{path}: there are no prepared data at {builder.data_path}, and jaxlm does not download any; run "
            f"`tfds build {name}`, or set TFDS_DATA_DIR to the folder that holds the data"
        )
    return builder, split
