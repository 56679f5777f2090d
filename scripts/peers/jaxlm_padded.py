#!/usr/bin/env python3
"""`jaxlm` that does not pack: a row has one example and is as long as the longest one.

compare_finetune starts it, to measure what packing is worth; arguments are those of jaxlm.
"""

import dataclasses
import sys

from jaxlm.cli import main
from jaxlm.data import example_rows
from jaxlm.data.examples import Examples

packed_shape = example_rows.shape_for


def one_example_in_a_row(examples: Examples, longest: int, factor: float = 1.0) -> example_rows.Shape:
    return dataclasses.replace(packed_shape(examples, longest), slots=1)


if __name__ == "__main__":
    example_rows.shape_for = one_example_in_a_row
    sys.exit(main())
