"""Studies: sweeps of runs over arms and seeds, the statistics of their differences, and reports."""
