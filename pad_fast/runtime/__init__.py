"""The machine underneath: files and locks, devices, ranks, seeds, progress, and the compiled extension.

Knows nothing of data sets, networks or gradients, so every other room may import it; itself it imports only `errors`.
"""
