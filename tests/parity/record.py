"""Records the outputs of Transformers for machines without torch: run `python -m tests.parity.record` at the root.

Each case becomes tests/golden/huggingface/CASE.json: config, names and shapes of tensors, outputs and gradients.
"""

import json
from pathlib import Path

import numpy as np

from tests.parity.cases import CASES, batch, summary
from tests.parity.reference import make, pad_id, parameters, run

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "huggingface"


def main() -> None:
    """Writes the files of all cases."""
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        model = make(case)
        outputs, loss, gradients = run(model)
        config = json.loads(model.config.to_json_string(use_diff=True))
        config = {name: value for name, value in config.items() if not name.startswith("_")}
        record = {
            "config": config | {"architectures": [type(model).__name__]},
            "pad": pad_id(model),
            "tensors": {name: list(tensor.shape) for name, tensor in parameters(model).items()},
            "outputs": np.round(summary(outputs[batch()["attention"] == 1]), 5).tolist(),
            "loss": round(loss, 6),
            "gradient_norms": {name: round(float(np.linalg.norm(g)), 6) for name, g in gradients.items()},
        }
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
        (GOLDEN / f"{case}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
