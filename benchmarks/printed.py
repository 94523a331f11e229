"""Test accuracy that papers print for the published settings: percent, ConvNet, mean and standard deviation."""

from __future__ import annotations

from typing import Any

_SETTINGS = (
    *("cifar10-ipc1", "cifar10-ipc10", "cifar10-ipc50", "cifar10-ipc500", "cifar10-ipc1000"),
    *("cifar100-ipc1", "cifar100-ipc10", "cifar100-ipc50", "cifar100-ipc100"),
    *("tinyimagenet-ipc1", "tinyimagenet-ipc10", "tinyimagenet-ipc50"),
)
_PAD = "PAD (arXiv 2408.03360), Table 1"

# A column for each setting; "-" where the paper has none. PAD's table prints the other methods' numbers again.
_ROWS = (
    ("PAD", _PAD, "47.2±0.6 67.4±0.3 77.0±0.5 84.6±0.3 86.7±0.2 28.4±0.5 47.8±0.2 55.9±0.3 58.5±0.3 "
                  "17.7±0.2 32.3±0.4 41.6±0.4"),
    ("DATM", _PAD, "46.9±0.5 66.8±0.2 76.1±0.3 83.5±0.2 85.5±0.4 27.9±0.2 47.2±0.4 55.0±0.2 57.5±0.2 "
                   "17.1±0.3 31.1±0.3 39.7±0.3"),
    ("MTT", _PAD, "46.2±0.8 65.4±0.7 71.6±0.2 - - 24.3±0.3 39.7±0.4 47.7±0.2 49.2±0.4 8.8±0.3 23.2±0.2 28.0±0.3"),
    ("TESLA", _PAD, "48.5±0.8 66.4±0.8 72.6±0.7 - - 24.8±0.4 41.7±0.3 47.9±0.3 49.2±0.4 - - -"),
    ("random real", _PAD, "15.4±0.3 31.0±0.5 50.6±0.3 73.2±0.3 78.4±0.2 4.2±0.3 14.6±0.5 33.4±0.4 42.8±0.3 "
                          "1.4±0.1 5.0±0.2 15.0±0.4"),
    ("full data", _PAD, "84.8±0.1 84.8±0.1 84.8±0.1 84.8±0.1 84.8±0.1 56.2±0.3 56.2±0.3 56.2±0.3 56.2±0.3 "
                        "37.6±0.4 37.6±0.4 37.6±0.4"),
)  # fmt: skip


def printed(setting: str) -> list[dict[str, Any]]:
    """Rows of what is printed for a setting, as `pad_fast.settings.presets` names it; none for the digits.

    Example:
        >>> printed("cifar10-ipc1")[0]
        {'name': 'PAD', 'mean': 47.2, 'std': 0.6, 'source': 'PAD (arXiv 2408.03360), Table 1'}
    """
    if setting not in _SETTINGS:
        return []
    rows = []
    for name, source, numbers in _ROWS:
        mean, _, std = numbers.split()[_SETTINGS.index(setting)].partition("±")
        if std:
            rows.append({"name": name, "mean": float(mean), "std": float(std), "source": source})
    return rows
