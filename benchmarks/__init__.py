"""Measurements: `python -m benchmarks` runs every suite, `python -m benchmarks.<suite> --help` says what one can do.

`registry` lists the suites and says how to add one, `harness` holds what they share (turns, the check in front of every
ratio, memory, the JSON), `rivals` what we are measured against. `report` and `plots` turn results into the tables and
curves of the documents; `model`, `published` and `scaling` predict what was not measured. Ratios come from one run,
after its check has passed.
"""
