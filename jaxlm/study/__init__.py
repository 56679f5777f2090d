"""Studies: sweeps of runs over arms and seeds, the statistics of their differences, and reports.

A sweep is described with the classes below; docs/studies.md shows how.
"""

from jaxlm.study.design import Arm, Range, Search, Sweep

__all__ = ["Arm", "Range", "Search", "Sweep"]
