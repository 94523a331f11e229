"""Measurements: `python -m benchmarks.<suite> --help`. Ratios come from one run, after its check has passed."""
