"""Networks by where they come from: packages, import paths, classes and functions."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pad_fast
from pad_fast.errors import InputError
from pad_fast.models import ConvNet
from pad_fast.models.sources import model_name
from pad_fast.models.spec import NetworkSpec

from ..support.paths import ROOT


class Known(nn.Module):
    """A class at the top of a module, which has more arguments than it needs to be given."""

    def __init__(self, classes: int, channels: int, *, hidden: int = 7, resolution: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(channels * resolution**2, hidden)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).tanh())


def by_place(a: int, b: int, c: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(a * c * c, b))


SHAPE: dict[str, int] = {"channels": 2, "classes": 3, "resolution": 8}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Known, "python:tests.models.test_sources:Known"),
        ("python:tests.models.test_sources:Known", "python:tests.models.test_sources:Known"),
        (by_place, "python:tests.models.test_sources:by_place"),
        (ConvNet, "python:pad_fast.models.convnet:ConvNet"),
        (lambda channels, classes, resolution: by_place(channels, classes, resolution), "local:<lambda>"),
        (functools.partial(Known, hidden=3), "local:partial"),
    ],
    ids=["class", "path", "function", "ours", "lambda", "partial"],
)
def test_a_name_makes_the_network(model: Any, name: str) -> None:
    assert model_name(model).split(" ")[0] == name
    assert model_name(model) == model_name(model)
    made = pad_fast.network(model, **SHAPE)
    assert made(torch.randn(5, 2, 8, 8)).shape == (5, 3)
    assert made.training
    spec = NetworkSpec(model_name(model), *SHAPE.values())
    first, again, other = (spec.build(seed, "x").initial() for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_two_functions_of_one_name_are_two_networks() -> None:
    makers = [lambda channels, classes, resolution, n=n: Known(classes, channels, hidden=n) for n in (3, 4)]
    names = [model_name(maker) for maker in makers]
    assert len(set(names)) == 2 and [model_name(maker) for maker in makers] == names
    assert [pad_fast.network(name, **SHAPE).first.out_features for name in names] == [3, 4]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvisions_networks_for_any_channels(name: str, channels: int) -> None:
    made = pad_fast.network(f"torchvision:{name}", channels=channels, classes=5, resolution=32)
    assert made(torch.randn(2, channels, 32, 32)).shape == (2, 5)


def test_timms_networks_for_any_size() -> None:
    if not _installed("timm"):
        pytest.skip("timm is not installed")
    made = pad_fast.network("timm:vit_tiny_patch16_224", channels=1, classes=5, resolution=32)
    assert made(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_a_stand_in_for_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the package, where it is not installed."""
    asked: list[dict[str, Any]] = []

    class Timm:
        @staticmethod
        def is_model(name: str) -> bool:
            return name in Timm.list_models()

        @staticmethod
        def list_models() -> list[str]:
            return ["vit_small", "resnet_small"]

        @staticmethod
        def create_model(name: str, *, num_classes: int, in_chans: int, pretrained: bool, **sizes: int) -> nn.Module:
            asked.append({"name": name, "pretrained": pretrained, **sizes})
            if sizes and "vit" not in name:
                raise TypeError("img_size")
            return by_place(in_chans, num_classes, 8)

    monkeypatch.setitem(sys.modules, "timm", Timm)
    for name in ("vit_small", "resnet_small"):
        assert pad_fast.network(f"timm:{name}", **SHAPE)(torch.zeros(2, 2, 8, 8)).shape == (2, 3)
    assert [each.get("img_size") for each in asked] == [8, 8, None] and not any(each["pretrained"] for each in asked)
    with pytest.raises(InputError, match="timm has no network 'vit_smal'. Did you mean 'vit_small'"):
        pad_fast.network("timm:vit_smal", **SHAPE)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("torchvision:resnet19", "no network 'resnet19' for images. Did you mean 'resnet18'"),
        ("torchvision:alexnet", r"does not take images \[2, 2, 8, 8\]: .*; use a network for this size"),
        ("python:nowhere.at_all:Net", r"nowhere.at_all cannot be imported .*; write python:MODULE:NAME"),
        ("python:torch.nn:Lineal", "torch.nn has no class or function Lineal; write python:MODULE:NAME"),
        ("python:torch", "there is no module and name in it; write python:MODULE:NAME"),
        ("python:torch.nn:Linear", "takes in_features, out_features, and is given channels, classes and resolution"),
        ("python:collections:OrderedDict", "made a OrderedDict; it must return an nn.Module"),
        ("local:somebody's", "only the process which named it has; pass the same function as model= again"),
        (lambda channels, classes, resolution: nn.Flatten(), r"returns \[2, 128\] for 2 images of 3 classes; make one"),
        (nn.Linear(2, 3), "model is a Linear, of which every expert and student needs a new one; pass its class"),
        (3, "model is 3; pass a network's name, its class, or a function"),
    ],
)
def test_what_makes_no_network_is_refused(model: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pad_fast.network(model, **SHAPE)


def test_further_arguments_are_for_networks_of_ours() -> None:
    with pytest.raises(InputError, match="takes no further arguments, got width; leave them out"):
        pad_fast.network(Known, width=3, **SHAPE)


def test_a_network_of_the_main_program_is_found_in_another_run_of_it(tmp_path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import sys, torch\nfrom torch import nn\nimport pad_fast\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, channels, classes, resolution):\n"
        "        super().__init__()\n"
        "        self.last = nn.Linear(channels * resolution**2, classes)\n"
        "    def forward(self, x):\n"
        "        return self.last(x.flatten(1))\n"
        "name = pad_fast.Config(model=Net).model\n"
        "print(name, type(pad_fast.network(sys.argv[1] if sys.argv[1:] else Net)).__name__)\n"
    )

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run() == run("python:__main__:Net") == "python:__main__:Net Net"
