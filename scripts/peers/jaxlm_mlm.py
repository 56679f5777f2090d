"""Times jaxlm's training step in a process that stays warm, for scripts/gpu_checks.

    python scripts/peers/jaxlm_mlm.py --shape=bert_base:256x128:2

Compiles the step, prints {"ready": true}, then prints the result of `jaxlm bench` as a JSON object for each line read.
"""

import argparse
import gc
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent.parent)]

from comparison import read_shape  # noqa: E402

from jaxlm.performance import bench  # noqa: E402


def main() -> None:
    """Compiles the step, then times it once for each line on standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True, help="NAME:BATCHxLENGTH:DOCUMENTS")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    shape = read_shape(args.shape)
    bench.MEASURING_SECONDS = 0.1  # the measured peak is not used; the datasheet's is
    bench.bench(shape.config(), 1, 0, shape.documents)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        gc.collect()  # frees the device memory of the last run
        # The step is compiled by the first run and read from the compilation cache by the others.
        print(json.dumps(bench.bench(shape.config(), args.steps, args.warmup, shape.documents)), flush=True)


if __name__ == "__main__":
    main()
