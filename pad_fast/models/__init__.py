"""Networks of experts, students and evaluations, and their parameters as one flat vector.

Imported by engines and everything above; stands on runtime alone.
"""

from __future__ import annotations

from .convnet import ConvNet, ConvNetConfig
from .flat import FlatNetwork, embed
from .registry import network, network_names

__all__ = ["ConvNet", "ConvNetConfig", "FlatNetwork", "embed", "network", "network_names"]
