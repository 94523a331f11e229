"""What a module computes besides the values of its parameters, as a key: modules with equal keys compute the same.

Scripts build a new network in every iteration, of the same classes with the same attributes. A key holds everything
that its `forward` can read: classes with their functions and constants, attributes, buffers, the globals that a
function names. Whatever cannot be compared by value (an open file, a large tensor, a hook) makes a module opaque.
"""

from __future__ import annotations

import dis
import os
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache, partial
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device, torch.layout, torch.memory_format)
_FIXED = (
    BuiltinFunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
    Enum,
)
# Nothing but their attributes; a method may be decorated with the latter.
_WITH_ATTRIBUTES = (Namespace, SimpleNamespace, torch.no_grad, torch.enable_grad, torch.inference_mode)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
# Of a class: what no call reads, and what has done its work once an object is there.
_UNREAD = frozenset(
    "__abstractmethods__ __annotations__ __dataclass_fields__ __dataclass_params__ __dict__ __doc__ __firstlineno__ "
    "__init__ __module__ __orig_bases__ __parameters__ __qualname__ __repr__ __static_attributes__ __weakref__ "
    "_abc_impl extra_repr".split()
)
# Numbers of a tensor that is compared by value, as one with a data set's mean and deviation is.
_SMALL = 4096
# Values that are read before a module counts as opaque; a ConvNet has about five hundred.
_LARGEST = 20_000
_LIBRARIES = ("torch", "torchvision", "numpy", "pad_fast")
_STANDARD = os.path.dirname(os.__file__)


def structure_of(module: nn.Module) -> Hashable | None:
    """A key of what `module` computes as a function of its parameters and its input; None for an opaque one.

    Example:
        >>> structure_of(nn.ReLU()) == structure_of(nn.ReLU()), structure_of(nn.ReLU()) == structure_of(nn.ReLU6())
        (True, False)
    """
    try:
        return _Reader(module).value(module)
    except (_OpaqueError, RecursionError):
        return None


class _OpaqueError(Exception):
    """Something that cannot be compared by value."""


class _Same:
    """Equal to another one of the very same object, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Reader:
    """Reads one module; what is met again is named by the number of its first meeting."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {id(parameter): number for number, parameter in enumerate(module.parameters())}
        self.met: dict[Hashable, int] = {}
        self.left = _LARGEST

    def value(self, value: Any) -> Hashable:
        self.left -= 1
        if not self.left:
            raise _OpaqueError
        kind = type(value)
        if value is None or kind in _PLAIN:
            return kind, value
        if kind is float:
            return kind, value.hex()  # 0.0 and -0.0 are equal
        if isinstance(value, Tensor):
            return self._tensor(value)
        if kind is list or (isinstance(value, tuple) and not hasattr(value, "__dict__")):
            return kind, *map(self.value, value)
        if kind in (dict, OrderedDict):
            return kind, *((self.value(key), self.value(item)) for key, item in value.items())
        if kind in (set, frozenset):
            return kind, frozenset(map(self.value, value))
        if isinstance(value, nn.Module):
            return self._once(value, self._module)
        if isinstance(value, type):
            return self._once(value, self._class)
        if kind is FunctionType:
            return self._once(value, self._function)
        if kind is MethodType:
            return kind, self.value(value.__func__), self.value(value.__self__)
        if kind is partial:
            return kind, self.value(value.func), self.value(value.args), self.value(value.keywords)
        if kind in (staticmethod, classmethod):
            return kind, self.value(value.__func__)
        if kind is property:
            return kind, self.value((value.fget, value.fset))
        if kind in _WITH_ATTRIBUTES or (is_dataclass(value) and hasattr(value, "__dict__")):
            return self.value(kind), self.value(vars(value))
        if isinstance(value, _FIXED) or (kind is ModuleType and _is_fixed(value.__name__)):
            return _Same(value)
        raise _OpaqueError

    def _once(self, value: Any, read: Callable[[Any], Hashable], *how: Hashable) -> Hashable:
        count = len(self.met)
        number = self.met.setdefault((id(value), *how), count)
        return read(value) if number == count else number

    def _module(self, module: nn.Module) -> Hashable:
        own = vars(module)
        if any(own.get(name) for name in _HOOKS):
            raise _OpaqueError
        return (
            self.value(type(module)),
            tuple((name, self.value(value)) for name, value in own.items() if name not in _INTERNAL),
            tuple((name, self._parameter(parameter)) for name, parameter in module._parameters.items()),
            tuple((name, self.value(buffer)) for name, buffer in module._buffers.items()),
            tuple((name, self.value(child)) for name, child in module._modules.items()),
        )

    def _parameter(self, parameter: Tensor | None) -> Hashable:
        if parameter is None:
            return None
        if id(parameter) not in self.parameters:
            raise _OpaqueError
        return self.parameters[id(parameter)], parameter.shape, parameter.dtype, parameter.device

    def _tensor(self, tensor: Tensor) -> Hashable:
        """A wrapper around one flat vector keeps views of it where the network inside had parameters."""
        owner = self.parameters.get(id(tensor if tensor._base is None else tensor._base))
        if owner is not None:
            return owner, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
        if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.numel() > _SMALL:
            raise _OpaqueError
        if tensor.layout is not torch.strided:
            raise _OpaqueError
        return tensor.dtype, tensor.shape, tensor.detach().flatten().view(torch.uint8).numpy().tobytes()

    def _class(self, kind: type) -> Hashable:
        if _is_fixed(kind.__module__):
            return _Same(kind), _Same(getattr(kind, "forward", None))
        members = ((name, self.value(value)) for name, value in vars(kind).items() if name not in _UNREAD)
        return _Same(kind), tuple(members), tuple(map(self.value, kind.__bases__))

    def _function(self, function: FunctionType) -> Hashable:
        around = function.__globals__
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())  # a decorator's hold what it decorates
        if _is_fixed(around.get("__name__")):
            return _Same(function), cells
        names = _names(function.__code__)
        if names is None:
            raise _OpaqueError
        return (
            function.__code__,
            self.value(function.__defaults__),
            self.value(function.__kwdefaults__),
            cells,
            self.value(vars(function)),
            tuple((name, self._global(around[name], names)) for name in names if name in around),
        )

    def _cell(self, cell: CellType) -> Hashable:
        try:
            return self.value(cell.cell_contents)
        except ValueError:  # nothing in it yet
            raise _OpaqueError from None

    def _global(self, value: Any, names: tuple[str, ...]) -> Hashable:
        """A global, and of a script's own module the attributes that may be asked for."""
        if type(value) is not ModuleType or _is_fixed(value.__name__):
            return self.value(value)

        def read(module: ModuleType) -> Hashable:
            asked = ((name, vars(module)[name]) for name in names if name in vars(module))
            return _Same(module), tuple((name, self._global(each, names)) for name, each in asked)

        return self._once(value, read, names)


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...] | None:
    """Every name that code, or a function defined in it, looks up outside itself: globals and attributes.

    None where it imports a script's own module when it is called.
    """
    imported = (step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME")
    inner = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    if any(name.partition(".")[0] not in _LIBRARIES for name in imported) or None in inner:
        return None
    return tuple(dict.fromkeys((*code.co_names, *(name for names in inner if names for name in names))))


@lru_cache(maxsize=1024)
def _is_fixed(name: str | None) -> bool:
    """Whether a module is one that scripts do not rewrite while they run: torch, Python's own."""
    top = (name or "").partition(".")[0]
    if top in _LIBRARIES:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    own = file is None or (file.startswith(_STANDARD + os.sep) and "site-packages" not in file)
    return top in sys.stdlib_module_names and top != "__main__" and own
