"""The names that a setting is chosen from, each list stated once: for the checks, the command line and its help.

Whoever implements the choice takes its list from here. The modes of DSA are beside their implementation, which is
lower: :data:`pad_fast.data.augment.MODES`.
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
LABELS_ARE = ("logits", "probabilities")
SPLITS = ("trajectories", "batch")
