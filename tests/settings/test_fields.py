"""How settings are declared: their types, limits and choices."""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from typing import Any, Optional

import pytest

from pad_fast import Config, ParameterMask
from pad_fast.data.augment import MODES
from pad_fast.errors import ConfigError
from pad_fast.settings import choices
from pad_fast.settings.fields import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Kind, alternatives, kinds
from pad_fast.settings.resolve import make_settings
from pad_fast.training.optimizers import make_optimizer

from ..support.paths import ROOT

LISTS = {name: value for name, value in vars(choices).items() if isinstance(value, tuple)}
BEYOND: dict[Any, list[float]] = {
    POSITIVE: [0, -1, float("inf"), float("nan")],
    NOT_NEGATIVE: [-1, float("inf"), float("nan")],
    BELOW_ONE: [1, -0.5, float("nan")],
}
LIMITED = [item.name for item in fields(Config) if item.metadata["must"] is not None]
CHOSEN = [item.name for item in fields(Config) if item.metadata["choices"]]


def test_types_are_resolved_whatever_way_they_are_written() -> None:
    @dataclass
    class Written:
        plain: bool
        union: int | None
        reversed: None | float
        old: Optional[str]  # noqa: UP045

    assert kinds(Config)["batch_syn"] == Kind(int, True) and kinds(Config)["zca"] == Kind(bool, False)
    assert set(kinds(Config)) == {item.name for item in fields(Config)}
    assert {kind.base for kind in kinds(Config).values()} == {bool, int, float, str}
    assert kinds(Written) == {
        "plain": Kind(bool, False),
        "union": Kind(int, True),
        "reversed": Kind(float, True),
        "old": Kind(str, True),
    }


@pytest.mark.parametrize("name", LIMITED)
def test_a_number_beyond_its_limit_is_refused(name: str) -> None:
    item, kind = Config.__dataclass_fields__[name], kinds(Config)[name]
    for value in BEYOND[item.metadata["must"]]:
        with pytest.raises(ConfigError, match=f"{name} is {value:g}|{name} is {float(value)}"):
            Config(**{name: value})
    assert kind.base in (int, float)


def test_no_limit_is_lost() -> None:
    by_limit = {
        limit: sum(item.metadata["must"] is limit for item in fields(Config))
        for limit in (POSITIVE, NOT_NEGATIVE, BELOW_ONE)
    }
    assert by_limit == {POSITIVE: 29, NOT_NEGATIVE: 10, BELOW_ONE: 6}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_choice_is_one_of_its_list_and_the_help_names_them(name: str) -> None:
    item = Config.__dataclass_fields__[name]
    assert item.default in item.metadata["choices"] and item.type == "str"
    assert alternatives(item.metadata["choices"]) in item.metadata["help"]
    for value in item.metadata["choices"]:
        overrides = {"method": "mtt"} if name != "method" else {}
        assert getattr(make_settings(overrides={**overrides, name: value}).config, name) == value
    wrong = item.default + "z"
    with pytest.raises(ConfigError, match=f"{name} is '{wrong}'; use one of .*Did you mean '{item.default}'"):
        Config(**{name: wrong})


def test_every_list_is_a_settings_and_stated_once() -> None:
    used = {item.metadata["choices"] for item in fields(Config)}
    # The first two make up METHODS, and a rule of pruning has a ratio behind its word.
    assert set(LISTS.values()) - used == {choices.TRAJECTORY_METHODS, choices.BATCH_METHODS, choices.PRUNES}
    lists = {frozenset(value): name for name, value in LISTS.items()} | {frozenset(MODES): "MODES"}
    found = []
    for path in sorted([*(ROOT / "pad_fast").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                names = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                if len(names) == len(node.elts) and len(names) > 1 and frozenset(names) in lists:
                    found.append((path.relative_to(ROOT).as_posix(), lists[frozenset(names)]))
    expected = [("pad_fast/data/augment.py", "MODES")]
    expected += [("pad_fast/settings/choices.py", name) for name in LISTS if name != "METHODS"]
    assert sorted(found) == sorted(expected)


def test_the_lists_are_what_the_implementations_serve() -> None:
    for name in choices.OPTIMIZERS:
        make_optimizer(name, 0.1, rho=0.1, alpha=0.1)
    for kind in choices.MASKS:
        assert ParameterMask(kind).kind == kind
