"""What the check of a card computes: right kernels pass, every planted fault is found and named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, get_type_hints

import pytest
import torch

from pad_fast.engines.triton import verdicts
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.verification import check, families
from pad_fast.verification.__main__ import main
from pad_fast.verification.families import SMALL

from ..support.triton import Emulated, register

CPU = torch.device("cpu")

pytest.importorskip("triton", reason="the kernels' modules import Triton")


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> Operations:
    """Twins in the kernels' place, recorded as graphs are."""
    operations = Operations(naive=True)
    register(monkeypatch, TritonEngine(operations, recorder=Emulated))
    monkeypatch.setattr(families, "Operations", lambda naive=False: Operations(naive=True) if naive else operations)
    return operations


def findings() -> dict[tuple[str, str], check.Finding]:
    return {(finding.family, finding.precision): finding for finding in check._findings(CPU)}


def test_right_kernels_pass_in_every_family_and_precision(naive):
    found = findings()
    assert len(found) == 21 and all(finding.right for finding in found.values()), [*map(str, found.values())]
    assert {precision for _, precision in found} == {"float64", "ieee", "tf32"}
    assert max(finding.error for finding in found.values()) > 0, "everything was equal: was anything compared?"


def operations_by_name() -> list[tuple[str, str]]:
    """Every operation of every family."""
    found = []
    for family, place in vars(Operations).items():
        if isinstance(place, cached_property):
            protocol = get_type_hints(place.func)["return"]
            found += [(family, name) for name in vars(protocol) if not name.startswith("_")]
    return found


class Broken:
    """A family of operations, one of which is wrong or fails."""

    def __init__(self, whole: Any, name: str, fault: Callable[..., Any]) -> None:
        self.whole, self.name, self.fault, self.used = whole, name, fault, False

    def __getattr__(self, name: str) -> Any:
        original = getattr(self.whole, name)
        if name != self.name:
            return original

        def broken(*args: Any, **options: Any) -> Any:
            self.used = True
            return self.fault(original, *args, **options)

        return broken


def tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    if isinstance(tree, dict):
        return tensors(list(tree.values()))
    return [each for part in tree for each in tensors(part)] if isinstance(tree, (list, tuple)) else []


def wrong(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Every number that is returned or written is off by some percent."""
    given = tensors((args, options))
    before = [each.clone() for each in given]
    result = original(*args, **options)
    written = [each for each, old in zip(given, before, strict=True) if not torch.equal(each, old)]
    places = {each.data_ptr() for each in given}
    for each in [*written, *(new for new in tensors(result) if new.data_ptr() not in places)]:
        each.mul_(1.3).add_(0.3 * each.abs().mean())
    return result


def failing(original, *args, **options):
    raise RuntimeError("an illegal memory access was encountered")


@pytest.mark.parametrize("fault", [wrong, failing], ids=["wrong", "failing"])
@pytest.mark.parametrize(("family", "name"), operations_by_name(), ids=str)
def test_every_broken_operation_is_found(naive, monkeypatch, family, name, fault):
    broken = Broken(getattr(naive, family), name, fault)
    monkeypatch.setattr(naive, family, broken)
    found = findings()
    assert broken.used, "no computation reaches it"
    bad = [finding for finding in found.values() if not finding.right]
    assert bad, "nobody noticed"
    if fault is failing:
        assert any("illegal memory access" in finding.problem for finding in bad)


def test_the_verdict_that_is_written_is_the_one_that_is_read(naive, tmp_path):
    out, told = tmp_path / "verdict.json", []
    main(["cpu", str(out)])
    verdict = verdicts.read(out, verdicts.subject_of(CPU))
    assert verdict is not None and len(verdict.findings) == 21 and verdict.kernels_ms > 0 and verdict.torch_ms > 0
    assert verdict.objection is None or "torch is faster" in verdict.objection
    assert check.run(CPU, told=told.append).findings == tuple(told)


def test_what_was_found_before_a_crash_is_there(naive, monkeypatch, tmp_path):
    def crash(*args, **options):
        raise KeyboardInterrupt  # nothing that could be handled

    monkeypatch.setattr(naive, "augment", Broken(naive.augment, "apply", crash))
    with pytest.raises(KeyboardInterrupt):
        main(["cpu", str(tmp_path / "verdict.json")])
    verdict = verdicts.read(tmp_path / "verdict.json", verdicts.subject_of(CPU))
    assert verdict is not None and len(verdict.findings) == 9 and verdict.objection is not None


def test_sizes_reach_both_kinds_of_networks():
    assert SMALL.blocks["channels"] == 3 and SMALL.gray["resolution"] % 2 == 1
