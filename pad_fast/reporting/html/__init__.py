"""Pages, charts and galleries as self-contained HTML; knows nothing of runs.

Imported by reporting only.
"""
