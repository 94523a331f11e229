"""The table of operations: what its Protocols promise is what kernels and twins take."""

from __future__ import annotations

import importlib
import inspect
from typing import get_type_hints

import pytest

pytest.importorskip("triton", reason="the kernels' modules import Triton")

from pad_fast.engines.triton.operations import Operations

FAMILIES = {
    name: get_type_hints(member.func)["return"]
    for name, member in vars(Operations).items()
    if hasattr(member, "func")  # cached properties
}
PROMISED = [
    (family, name)
    for family, protocol in FAMILIES.items()
    for base in protocol.__mro__
    if getattr(base, "_is_protocol", False)
    for name, member in vars(base).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


def test_every_family_is_there():
    assert set(FAMILIES) == {
        *("conv", "block", "first", "classifier", "head", "matching", "gradient_distance", "update", "augment")
    }
    assert len(PROMISED) == len(set(PROMISED)) >= 29


@pytest.mark.parametrize("prefix", ["", "naive_"], ids=["kernel", "twin"])
@pytest.mark.parametrize(("family", "name"), PROMISED, ids=".".join)
def test_an_operation_takes_what_its_protocol_promises(family, name, prefix):
    module = importlib.import_module(f"pad_fast.kernels.{family}")
    operation = getattr(module, prefix + name, None) or getattr(module, name)  # plain torch has no twin
    promised = list(inspect.signature(getattr(FAMILIES[family], name)).parameters.values())[1:]  # without self
    given = list(inspect.signature(operation).parameters.values())
    assert [(each.name, each.kind) for each in promised] == [(each.name, each.kind) for each in given]
    for own, other in zip(promised, given, strict=True):
        assert own.default in (other.default, inspect.Parameter.empty), own.name


@pytest.mark.parametrize("naive", [False, True], ids=["kernels", "twins"])
def test_the_table_hands_them_out(naive):
    operations = Operations(naive=naive)
    for family, name in PROMISED:
        module = importlib.import_module(f"pad_fast.kernels.{family}")
        expected = getattr(module, "naive_" + name, None) if naive else None
        assert getattr(getattr(operations, family), name) is (expected or getattr(module, name))
    assert operations.first.MOST_CHANNELS >= 3 and inspect.isclass(operations.first.FirstBlock)
