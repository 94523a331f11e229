"""The networks experts, students and evaluations use."""

from __future__ import annotations

from .convnet import ConvNet, ConvNetConfig
from .flat import FlatNetwork, embed
from .registry import network, network_names

__all__ = ["ConvNet", "ConvNetConfig", "FlatNetwork", "embed", "network", "network_names"]
