"""Reads prepared TensorFlow Datasets: `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.formats import missing_field, text_of
from jaxlm.text.tensorflow_import import import_tensorflow


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
    features = list(builder.info.features)
    if settings.field not in features:
        raise missing_field(settings.field, features, path)
    dataset = _in_order(builder, split, path).map(lambda example: example[settings.field])
    for number, value in enumerate(dataset.as_numpy_iterator()):
        place = f"{path}, example {number}"
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: the field {settings.field} is not valid UTF-8; set data.field to a field with text"
            ) from error
        yield text_of({settings.field: text}, settings.field, place)


def tfds_records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place, as "PATH, example N", and the fields of each example of a split in order.

    A class label is given by its name; one that is hidden (-1) is None. Raises UserError.
    """
    builder, split = _prepared_builder(path)
    import tensorflow_datasets as tfds

    labels = {name: of for name, of in builder.info.features.items() if isinstance(of, tfds.features.ClassLabel)}
    for number, example in enumerate(_in_order(builder, split, path).as_numpy_iterator()):
        place = f"{path}, example {number}"
        try:
            values = {name: _plain(value) for name, value in example.items()}
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: a text is not valid UTF-8 ({error}); prepare the data set again") from error
        yield place, values | {n: of.int2str(values[n]) if values[n] >= 0 else None for n, of in labels.items()}


def _plain(value: Any) -> Any:
    """Returns a value of TFDS with text as str, numbers as those of Python, and arrays as lists."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    found = value.tolist()
    return [_plain(part) if isinstance(part, bytes) else part for part in found] if isinstance(found, list) else found


def _in_order(builder: Any, split: str, path: str) -> Any:
    """Returns the tf.data.Dataset of a split, in the order of its files. Raises UserError if there is no such split."""
    import tensorflow_datasets as tfds

    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        return builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: there is no split {split}; choose one of: {', '.join(builder.info.splits)}"
        ) from error


def _prepared_builder(path: str) -> tuple[Any, str]:
    """Returns the builder and the split of a path. Raises UserError if its data are not on this machine."""
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", path)
    if not match:
        raise UserError(f"{path}: expected tfds:NAME[/CONFIG][:VERSION][:SPLIT], such as tfds:imdb_reviews:train")
    name, split = match[1], match[2] or "train"
    import_tensorflow()  # before TFDS imports it
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
