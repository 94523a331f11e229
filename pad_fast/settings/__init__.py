"""The settings of a run: their fields, presets, YAML files, and how these become one :class:`Config`.

Rooms that are driven by a whole run's settings import it (distillation and everything above); engines, matching,
training and data take plain arguments instead.
"""
