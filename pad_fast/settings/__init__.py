"""The settings of a run: their fields, presets, YAML files, and how these become one :class:`Config`.

Rooms that are driven by a whole run's settings import it (distillation and everything above); engines, matching and
training take plain arguments, and import only the names that a setting is chosen from (`choices`). It imports data.
"""
