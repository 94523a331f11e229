"""Triton kernels of pad_fast, installed as `pad_fast.kernels`.

Importing this package imports no Triton: each kernel module does so itself, on first use.
"""
