"""The names that a setting is chosen from, each list stated once: for the checks, the command line and its help.

Whoever implements the choice takes its list from here. What lies lower keeps its own: the modes of DSA are
:data:`pad_fast.data.augment.MODES`, what soft labels may be is :data:`pad_fast.data.labels.LABELS_ARE`.
"""

TRAJECTORY_METHODS = ("pad", "datm", "ftd", "mtt", "tesla")
BATCH_METHODS = ("dc", "dsa", "dm")
"""Methods that match batches of real images instead of experts' trajectories; see docs/matching.md."""
METHODS = (*TRAJECTORY_METHODS, *BATCH_METHODS)

SCORE_METHODS = ("el2n", "grand", "forgetting")
OPTIMIZERS = ("gsam", "sgd")
STORAGES = ("float32", "float16", "bfloat16-delta")
PRUNES = ("hardest", "easiest")
"""The ends of the easy-to-hard order that images are dropped from."""

INITS = ("samples_predicted_correctly", "real", "noise")
MASKS = ("none", "depth", "loss", "layers")
GRADIENTS = ("exact", "unroll", "tesla")
SPLITS = ("trajectories", "batch")
