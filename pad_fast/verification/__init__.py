"""Native kernels compared with torch on the user's own machine: what `backend="auto"` relies on where they are new.

Runs as `python -m pad_fast.verification`, a process of its own; stands on matching; the command line imports it.
"""
