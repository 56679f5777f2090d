"""Semantic search: prints the lines of a text file that are nearest to each query.

    python examples/search.py --model=DIR --lines=notes.txt "sort a list" "read a file"

DIR is a work directory of `jaxlm train`, a Hugging Face directory, or a sentence-transformers directory, whose pooling
is then used. The lines are embedded once and kept in a file beside them, so that the next search takes seconds.
"""

import argparse
from pathlib import Path

import numpy as np

import jaxlm


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the lines of a file that are nearest to each query.")
    parser.add_argument("--model", required=True, help="the directory of a model")
    parser.add_argument("--lines", required=True, type=Path, help="a text file")
    parser.add_argument("--top", type=int, default=3, help="number of lines for each query")
    parser.add_argument("queries", nargs="+")
    args = parser.parse_args()

    model = jaxlm.load(args.model, compute_dtype="auto")
    lines = [line for line in args.lines.read_text().splitlines() if line.strip()]
    index = args.lines.with_suffix(".vectors.npy")
    if not index.exists() or index.stat().st_mtime < args.lines.stat().st_mtime:
        np.save(index, model.embed(lines))
    vectors = np.load(index, mmap_mode="r")

    rows, cosines = jaxlm.nearest(model.embed(args.queries), vectors, k=args.top)
    for query, numbers, values in zip(args.queries, rows, cosines, strict=True):
        print(query)
        for number, cosine in zip(numbers, values, strict=True):
            print(f"  {cosine:.3f}  {lines[number]}")


if __name__ == "__main__":
    main()
