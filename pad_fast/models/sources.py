"""Networks from elsewhere, each under a name that settings and files can hold.

torchvision:NAME, timm:NAME    built by these packages, untrained
python:MODULE:NAME             a class or function, found by importing MODULE
local:NAME                     a class or function that no import finds (a lambda): this process knows it
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..runtime.torchvision_import import import_torchvision

Maker = Callable[..., nn.Module]
"""Makes a network out of (channels, classes, resolution)."""

SOURCES = ("torchvision", "timm", "python", "local")

_local: dict[str, Maker] = {}
_checked: set[tuple[str | int, ...]] = set()  # names and shapes of networks that give logits


def is_foreign(name: str) -> bool:
    """Whether a network's name says where it comes from."""
    return name.partition(":")[0] in SOURCES and ":" in name


def model_name(model: str | Maker) -> str:
    """The name of a network given by name, class or function; the same object has the same name.

    Raises:
        InputError: a network, instead of what makes one.
    """
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module):
        raise InputError(
            f"model is a {type(model).__name__}, of which every expert and student needs a new one; pass its class, or "
            "a function (channels, classes, resolution) that makes it"
        )
    if not callable(model):
        raise InputError(
            f"model is {model!r}; pass a network's name, its class, or a function (channels, classes, resolution) that "
            "makes it"
        )
    module, path = getattr(model, "__module__", None), getattr(model, "__qualname__", None)
    if module and path and _found(module, path) is model:
        return f"python:{module}:{path}"
    stem = path or type(model).__name__
    number, name = 1, f"local:{stem}"
    while _local.setdefault(name, model) is not model:
        number += 1
        name = f"local:{stem} {number}"
    return name


def build_foreign(name: str, *, channels: int, classes: int, resolution: int) -> nn.Module:
    """A network under one of the names above, for images `[N, channels, resolution, resolution]`.

    Raises:
        InputError: there is none, or it does not give logits `[N, classes]` of such images.
    """
    source, _, what = name.partition(":")
    arguments = {"channels": channels, "classes": classes, "resolution": resolution}
    module: nn.Module
    if source == "torchvision":
        module = _torchvision(what, **arguments)
    elif source == "timm":
        module = _timm(what, **arguments)
    else:
        module = _call(_maker(name), name, arguments)
    _require_logits(name, module, (channels, classes, resolution))
    return module


def _torchvision(name: str, *, channels: int, classes: int, resolution: int) -> nn.Module:
    try:
        models = import_torchvision("models")
    except ImportError as error:
        raise InputError(f"model 'torchvision:{name}': {error}") from error
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(
            f"torchvision has no network {name!r} for images.{nearest(name, known)} torchvision.models.list_models() "
            "has their names"
        )
    # Of two networks that would return more than logits while they are trained.
    plain = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return _with_channels(f"torchvision:{name}", models.get_model(name, num_classes=classes, **plain), channels)


def _with_channels(name: str, module: nn.Module, channels: int) -> nn.Module:
    """The network with a first convolution for so many channels; torchvision's take three."""
    if channels == 3:
        return module
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and part.in_channels == 3:
            first = nn.Conv2d(
                channels,
                part.out_channels,
                part.kernel_size,  # type: ignore[arg-type]
                part.stride,  # type: ignore[arg-type]
                part.padding,  # type: ignore[arg-type]
                bias=part.bias is not None,
            )
            owner, _, last = path.rpartition(".")
            setattr(module.get_submodule(owner), last, first)
            return module
    raise InputError(f"model {name!r} has no convolution of three channels to be exchanged for one of {channels}")


def _timm(name: str, *, channels: int, classes: int, resolution: int) -> nn.Module:
    try:
        import_torchvision("ops")  # timm does, without the care this takes
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise InputError(
            f"model 'timm:{name}' is timm's, which cannot be imported ({error}): pip install timm"
        ) from error
    if not timm.is_model(name):
        raise InputError(
            f"timm has no network {name!r}.{nearest(name, timm.list_models())} timm.list_models() has their names"
        )
    sizes = {"num_classes": classes, "in_chans": channels, "pretrained": False}
    try:
        module: nn.Module = timm.create_model(name, img_size=resolution, **sizes)  # transformers are made for one size
    except TypeError:
        module = timm.create_model(name, **sizes)
    return module


def _maker(name: str) -> Maker:
    source, _, what = name.partition(":")
    if source == "local":
        if what and name in _local:
            return _local[name]
        raise InputError(
            f"model {name!r} was made by a function that only the process which named it has; pass the same function "
            "as model= again, or define it at the top of a module, so that its import path is its name"
        )
    module, _, path = what.partition(":")
    found = _found(module, path) if module and path else None
    if not callable(found):
        raise InputError(
            f"model {name!r}: {_why_not(module, path)}; write python:MODULE:NAME of a class or function in a module "
            "that Python finds (PYTHONPATH=DIR names a folder of modules)"
        )
    return found


def _found(module: str, path: str) -> Any:
    """What lies under that path of that module; None where there is nothing."""
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
    except ImportError:
        return None
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _why_not(module: str, path: str) -> str:
    if not module or not path:
        return "there is no module and name in it"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    return f"{module} has no class or function {path}"


def _call(maker: Maker, name: str, arguments: dict[str, int]) -> nn.Module:
    """Arguments by name where the maker knows them, else the three in their order."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in positional]
    if set(needed) <= set(arguments):
        module = maker(**{key: value for key, value in arguments.items() if key in named})
    elif len(needed) == len(arguments):
        module = maker(*arguments.values())
    else:
        raise InputError(
            f"model {name!r} takes {', '.join(needed)}, and is given channels, classes and resolution; pass a function "
            "of these three that makes the network"
        )
    if not isinstance(module, nn.Module):
        raise InputError(f"model {name!r} made a {type(module).__name__}; it must return an nn.Module")
    return module


def _require_logits(name: str, module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Look at what it gives for two images, once for every name and shape."""
    channels, classes, resolution = shape
    if (name, *shape) in _checked:
        return
    images, training = torch.zeros(2, channels, resolution, resolution), module.training
    try:
        with torch.no_grad():
            found: Any = module.eval()(images)
    except Exception as error:  # the network's own, of any kind
        raise InputError(
            f"model {name!r} does not take images {list(images.shape)}: {str(error).strip() or type(error).__name__}; "
            "use a network for this size, or another resolution="
        ) from error
    finally:
        module.train(training)
    if not isinstance(found, Tensor) or tuple(found.shape) != (2, classes):
        given = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"model {name!r} returns {given} for 2 images of {classes} classes; make one whose forward returns logits "
            f"[2, {classes}]"
        )
    _checked.add((name, *shape))
