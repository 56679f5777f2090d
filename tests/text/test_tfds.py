import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_prepared_data_sets_are_read_and_errors_name_the_expected_folder(tmp_path):
    program = f"""
        import sys
        import numpy as np
        from jaxlm.config import default_config
        from jaxlm.text.filters import Tally
        from jaxlm.text.sources import read_documents
        from jaxlm.text.sources import source_fingerprint
        from jaxlm.errors import UserError
        import tensorflow_datasets as tfds
        data = default_config().data
        examples = [(i, {{"text": f"é {{i}}", "label": i}}) for i in range(10)]
        tfds.dataset_builders.store_as_tfds_dataset(
            "toy", version="1.0.0", data_dir={str(tmp_path)!r}, disable_shuffling=True,
            split_datasets={{"train": examples, "test": examples[:1]}},
            features=tfds.features.FeaturesDict({{"text": tfds.features.Text(), "label": np.int64}}),
        )
        splits = ["toy", "toy:train[:20%]", "toy:1.0.0:test", "toy:dev"]
        for path in [f"tfds:{{name}}" for name in [*splits, "nothing", "imdb_reviews"]]:
            try:
                print(path, "=>", list(read_documents(path, data, Tally())), len(source_fingerprint(path, data)))
            except UserError as error:
                print(path, "=>", error)
        from pathlib import Path
        from jaxlm.text.labelled import read_table
        reviews = [(i, {{"text": f"é {{i}}", "label": i - 1, "score": i / 2}}) for i in range(3)]
        tfds.dataset_builders.store_as_tfds_dataset(
            "reviews", version="1.0.0", data_dir={str(tmp_path)!r}, disable_shuffling=True,
            split_datasets={{"train": reviews}}, features=tfds.features.FeaturesDict({{
                "text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["bad", "good"]),
                "score": np.float64,
            }}),
        )
        for columns in ({{"text": "task.text", "label": "task.label"}}, {{"body": "task.text"}}):
            try:
                rows = read_table(Path("tfds:reviews"), "task.train", data, columns, True, False)
                print("labelled", "=>", [(row.place, *row.values.values()) for row in rows])
            except UserError as error:
                print("column", "=>", error)
        data.field = "body"
        try:
            list(read_documents("tfds:toy", data, Tally()))
        except UserError as error:
            print("field", "=>", error)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    output = dict(line.split(" => ") for line in run.stdout.splitlines() if " => " in line)
    assert output["tfds:toy"] == f"{[f'é {i}' for i in range(10)]} 32"
    assert output["tfds:toy:train[:20%]"] == "['é 0', 'é 1'] 32"
    assert output["tfds:toy:1.0.0:test"] == "['é 0'] 32"
    assert "there is no split dev; choose one of: train, test" in output["tfds:toy:dev"]
    assert f"{tmp_path}/nothing" in output["tfds:nothing"]
    assert f"{tmp_path}/imdb_reviews" in output["tfds:imdb_reviews"]
    assert "there is no field body; set data.field" in output["field"]
    assert output["labelled"] == (
        "[('tfds:reviews, example 0', None, 0.0, 'é 0'), ('tfds:reviews, example 1', 'bad', 0.5, 'é 1'), "
        "('tfds:reviews, example 2', 'good', 1.0, 'é 2')]"
    )
    assert output["column"].startswith("tfds:reviews, example 0: there is no column body; the columns are label, score")
