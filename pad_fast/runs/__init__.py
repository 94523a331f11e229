"""The folder of a run: the names of its files, reading it back, timing, the preview of real data, outside trackers.

Imported by reporting and the pipeline.
"""
