"""Records the outputs of Transformers for machines without torch: run `python -m tests.parity.record` at the root.

Each case becomes tests/golden/huggingface/CASE.json: config, names and shapes of tensors, outputs and gradients.
"""

import json
from pathlib import Path

import numpy as np

from tests.parity.cases import CASES, batch, summary
from tests.parity.head_cases import HEAD_CASES
from tests.parity.reference import head_outputs_of, make, make_head, pad_id, parameters, run

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "huggingface"
HEADS = GOLDEN / "heads.json"  # all heads of tasks, with less about each


def main() -> None:
    """Writes the files of all cases."""
    GOLDEN.mkdir(exist_ok=True)
    record_heads()
    for case in CASES:
        model = make(case)
        outputs, loss, gradients = run(model)
        record = {
            "config": config_of(model),
            "pad": pad_id(model),
            "tensors": {name: list(tensor.shape) for name, tensor in parameters(model).items()},
            "outputs": np.round(summary(outputs[batch()["attention"] == 1]), 5).tolist(),
            "loss": round(loss, 6),
            "gradient_norms": {name: round(float(np.linalg.norm(g)), 6) for name, g in gradients.items()},
        }
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
        (GOLDEN / f"{case}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def config_of(model) -> dict:
    """Returns the content of config.json, without the keys that have the defaults of Transformers."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    return config | {"architectures": [type(model).__name__]}


def record_heads() -> None:
    """Writes the config, the shapes of the tensors, and the outputs of each head of a task."""
    lines = []
    for case in HEAD_CASES:
        model = make_head(case)
        outputs = head_outputs_of(model)
        outputs = outputs[batch()["attention"] == 1][::9] if outputs.ndim == 3 else outputs
        record = {
            "config": config_of(model),
            "tensors": {name: list(tensor.shape) for name, tensor in parameters(model).items()},
            "outputs": np.round(outputs, 5).tolist(),
        }
        lines.append(f" {json.dumps(case)}: {json.dumps(record)}")
    HEADS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
