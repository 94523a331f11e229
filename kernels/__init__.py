"""Triton kernels of pad_fast, installed as `pad_fast.kernels`.

A module or a folder is a family of operations, each with its naive twin in plain torch (`naive_*`); `calls` is how all
of them launch, `aot` compiles them without a GPU. Engines, matching and benchmarks may import it; of pad_fast, kernels
import errors, the operations of DSA, and what their twins need. Importing this package imports no Triton: each family
does so itself, on first use.
"""
