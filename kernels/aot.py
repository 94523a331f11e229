"""Compile every kernel ahead of time, without a GPU, and read what it takes from the machine code.

Each kernel module, a file or a folder, has a function `production() -> list[Production]`: the configurations that real
runs use. The table of docs/kernels.md comes from here, in a process without TRITON_INTERPRET:

    python -m pad_fast.kernels.aot [--markdown | --json] [--update docs/kernels.md] [--only conv] [--jobs 2]

Registers and the stack frame are read from the ELF notes of the cubin itself, so nothing beyond Triton is needed. The
stack frame is where spilled registers go: a kernel without one spills nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .launch import OPTIONS, TARGETS, Cost, interpreted

_TOOLS = ("aot", "calls", "launch", "published")
MODULES = tuple(
    module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name not in _TOOLS
)
"""Every module beside this one that may hold kernels."""

BANDWIDTH = 4.8e12
"""Bytes per second of an H200's memory (datasheet)."""
RATES = {"tf32": 494e12, "bf16": 989e12, "tf32x3": 494e12 / 3, "ieee": 67e12, "float64": 34e12}
"""FLOP per second of an H200 by the arithmetic used (datasheet, dense): "ieee" is float32 outside the matrix units,
"tf32x3" float32 in three parts on them."""

_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Production:
    """One kernel in one configuration that real runs use.

    Attributes:
        name: the configuration in a few words, e.g. "D3 W128 block 2, batch 100"; the kernel's name stands beside it.
        kernel: the `triton.jit` function.
        signature: argument -> type ("*fp32", "i32", ...), for every argument that is not a constexpr.
        constexprs: argument -> value; a run-time integer of 1 belongs here too, because launching specialises on it.
        cost: of one launch in this configuration.
        precision: a key of :data:`RATES`: what the operations run on.
        hot: launched in every step; must not spill.
        divisible: run-time integers that are multiples of 16 here. Pointers always are.
        targets: compute capabilities on which this configuration is chosen.
        options: further compiler options, such as `maxnreg`.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    cost: Cost
    num_warps: int = 4
    num_stages: int = 3
    precision: str = "ieee"
    hot: bool = True
    divisible: tuple[str, ...] = ()
    targets: tuple[int, ...] = tuple(TARGETS)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def program(self) -> str:
        """The same for productions that compile to the same machine code."""
        settings = (self.signature, self.constexprs, self.divisible, self.num_warps, self.num_stages, self.options)
        return f"{_function(self.kernel)} {settings}"

    @property
    def floor(self) -> float:
        """Least time of a launch on an H200 in seconds: the larger of its bytes' and its operations' time."""
        return max(self.cost.bytes / BANDWIDTH, self.cost.flops / RATES[self.precision])


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel: registers per thread, shared memory and stack frame in bytes."""

    registers: int
    shared: int
    stack: int


@dataclass(frozen=True)
class Row:
    """One line of the table: a production and its resources per compute capability.

    `function` is the compiled one, `module.name`; `module`, a file or a folder of kernels/, lists it, and `kernel` is
    its name for readers.
    """

    module: str
    function: str
    kernel: str
    name: str
    hot: bool
    precision: str
    bytes: int
    flops: int
    floor_us: float
    num_warps: int
    resources: dict[int, Resources]


def production_of(
    name: str,
    kernel: Any,
    *args: Any,
    cost: Cost,
    precision: str = "ieee",
    hot: bool = True,
    targets: tuple[int, ...] = tuple(TARGETS),
    **options: Any,
) -> Production:
    """The production of a launch, from the very arguments of :func:`pad_fast.kernels.launch.launch`.

    Args:
        args: as for the launch. Tensors may be on the "meta" device, and "*fp32" stands for a pointer. Integers are
            specialised as at a launch: 1 is compiled in, multiples of 16 are marked.
        options: the kernel's keyword arguments, and compiler options such as `num_warps`.

    Raises:
        RuntimeError: this process interprets kernels. TypeError: an argument is missing or of no kernel's type.

    Example:
        >>> production_of("10 images", kernel, x, out, 3, 32, cost=Cost(8), BLOCK=256, num_warps=4)  # doctest: +SKIP
    """
    _require_compiler()
    names = list(kernel.arg_names)
    given = dict(zip(names, args, strict=False))
    given |= {key: options.pop(key) for key in list(options) if key in names}
    missing = [argument for argument in names if argument not in given]
    defaults = {parameter.name: parameter.default for parameter in kernel.params if parameter.has_default}
    given |= {argument: defaults[argument] for argument in missing if argument in defaults}
    missing = [argument for argument in names if argument not in given]
    if missing:
        raise TypeError(f"production of {kernel.__name__}: no value for {', '.join(missing)}")

    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    divisible: list[str] = []
    for parameter in kernel.params:
        value = given[parameter.name]
        specialises = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialises and type(value) is int and value == 1):
            constexprs[parameter.name] = value
            continue
        signature[parameter.name] = _type(value)
        aligns = specialises and not parameter.do_not_specialize_on_alignment
        if type(value) is int and value % 16 == 0 and aligns:
            divisible.append(parameter.name)
    warps, stages = options.pop("num_warps", 4), options.pop("num_stages", 3)
    return Production(
        name, kernel, signature, constexprs, cost, warps, stages, precision, hot, tuple(divisible), targets, options
    )


def _require_compiler() -> None:
    if interpreted():
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1; start another without it")


def _type(value: Any) -> str:
    """Triton's name for the type of a run-time argument."""
    if isinstance(value, str):
        return value
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"no kernel argument can be {value!r}")


def compile_production(production: Production, capability: int) -> Any:
    """Compile for one compute capability; returns Triton's compiled kernel (`.asm["cubin"]`, `.asm["ptx"]`, ...).

    Raises:
        RuntimeError: this process interprets kernels.
    """
    _require_compiler()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(production.kernel.arg_names)
    wrong = set(names) ^ {*production.signature, *production.constexprs}
    if wrong or set(production.signature) & set(production.constexprs):
        raise ValueError(
            f"production {production.name!r} of {production.kernel.__name__} must give every argument exactly once, as "
            f"a type or as a constant; look at {', '.join(sorted(wrong)) or 'those given twice'}"
        )
    signature = {name: production.signature.get(name, "constexpr") for name in names}
    aligned = {name for name, kind in signature.items() if kind.startswith("*")} | set(production.divisible)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in aligned}
    constants = {(names.index(name),): value for name, value in production.constexprs.items()}
    source = ASTSource(production.kernel, signature, constants, attributes)
    options = {"num_warps": production.num_warps, "num_stages": production.num_stages, **OPTIONS, **production.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Registers, shared memory and stack frame of a compiled kernel."""
    notes = list(_notes(compiled.asm["cubin"]))
    registers = max(value for attribute, value in notes if attribute == _REGISTERS)
    stack = max((value for attribute, value in notes if attribute in (_FRAME, _LEAST_STACK)), default=0)
    return Resources(registers, int(compiled.metadata.shared), stack)


_REGISTERS, _FRAME, _LEAST_STACK = 0x2F, 0x11, 0x12  # EIATTR_REGCOUNT, _FRAME_SIZE, _MIN_STACK_SIZE
_SIZED = 0x04  # EIFMT_SVAL: the entry's last two bytes count the payload that follows


def _notes(cubin: bytes) -> Iterator[tuple[int, int]]:
    """(attribute, value) of every per-function entry in the .nv.info section of a cubin, an ELF file."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, sections + size * i) for i in range(count)]
    names_at = headers[names_index][4]
    for name, _, _, _, start, length, *_ in headers:
        title = cubin[names_at + name : cubin.index(b"\0", names_at + name)]
        if title != b".nv.info":
            continue
        position = start
        while position < start + length:
            form, attribute, payload = struct.unpack_from("<BBH", cubin, position)
            position += 4
            if form == _SIZED:
                if payload == 8:  # the function's symbol, then its value
                    yield attribute, struct.unpack_from("<II", cubin, position)[1]
                position += payload


def productions(modules: Sequence[str] = MODULES) -> dict[str, list[Production]]:
    """Every production of those kernel modules that name some; helpers' kernels are named by who launches them."""
    loaded = {name: importlib.import_module(f".{name}", __package__) for name in modules}
    return {name: module.production() for name, module in loaded.items() if hasattr(module, "production")}


def compile_all(modules: Sequence[str] = MODULES, *, jobs: int | None = None) -> list[Row]:
    """Compile every production for every target, in `jobs` processes (default: one per core).

    Raises:
        CompileFailure: some do not compile; the message has them all.
    """
    table = productions(modules)
    tasks = [
        (name, index, target)
        for name, items in table.items()
        for index, item in enumerate(items)
        for target in item.targets
    ]
    # Configurations may differ in their cost alone. A kernel is no object to send to another process: a task names it.
    keys = {task: (table[task[0]][task[1]].program, task[2]) for task in tasks}
    first = {key: task for task, key in reversed(keys.items())}
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("fork")) as pool:
        outcomes = dict(zip(first, pool.map(_compile_task, first.values()), strict=True))
    found = {task: outcomes[key] for task, key in keys.items()}
    failures: dict[str, list[str]] = {}
    for (name, index, target), outcome in found.items():
        if isinstance(outcome, str):
            item = table[name][index]
            failures.setdefault(outcome, []).append(f"{name}.{_title(item)} ({item.name}) for sm_{target}")
    if failures:
        reasons = [f"{', '.join(where)}: {reason}" for reason, where in failures.items()]
        raise CompileFailure(
            "\n".join([f"{sum(map(len, failures.values()))} of {len(tasks)} do not compile:", *reasons])
        )
    rows: list[Row] = []
    for name, items in table.items():
        titles = _told_apart(items)
        for index, item in enumerate(items):
            taken = {target: found[name, index, target] for target in item.targets}
            row = Row(
                module=name,
                function=_function(item.kernel),
                kernel=_title(item),
                name=titles[index],
                hot=item.hot,
                precision=item.precision,
                bytes=item.cost.bytes,
                flops=item.cost.flops,
                floor_us=round(item.floor * 1e6, 6),
                num_warps=item.num_warps,
                resources={target: outcome for target, outcome in taken.items() if isinstance(outcome, Resources)},
            )
            if row not in rows:
                rows.append(row)
    return rows


def _told_apart(items: Sequence[Production]) -> list[str]:
    """The productions' names, with the constants that differ where several of one kernel have the same name."""
    titles = []
    for item in items:
        alike = [other for other in items if (_title(other), other.name) == (_title(item), item.name)]
        keys = dict.fromkeys(key for other in alike for key in other.constexprs)
        differing = [key for key in keys if len({str(other.constexprs.get(key, "given")) for other in alike}) > 1]
        titles.append(", ".join([item.name, *(f"{key} {item.constexprs.get(key, 'given')}" for key in differing)]))
    return titles


class CompileFailure(Exception):
    """Productions that do not compile, one line or more for each."""


def _function(kernel: Any) -> str:
    """The kernel's name behind that of the module or folder of kernels/ that it lies in."""
    place = kernel.__module__.removeprefix(f"{__package__}.").split(".")[0]
    return f"{place}.{kernel.__name__}"


def _title(production: Production) -> str:
    return production.kernel.__name__.strip("_").removesuffix("_kernel")


def _compile_task(task: tuple[str, int, int]) -> Resources | str:
    module, index, target = task
    production = productions([module])[module][index]
    try:
        return resources(compile_production(production, target))
    except Exception as error:  # whatever Triton raises, the other kernels are still worth knowing about
        return _reasons(error)


def _reasons(error: BaseException) -> str:
    """An exception and what caused it; Triton chains one for every call inside a kernel."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return "\n".join(f"{type(link).__name__}: {link}" for link in chain)


def faults(rows: Sequence[Row], *, stack: int = 0) -> list[str]:
    """Why compiled kernels are not fit for use.

    A hot kernel has a stack frame of more than `stack` bytes, or one needs more shared memory than there is.
    """
    found = []
    for row in rows:
        for target, taken in row.resources.items():
            where = f"{row.module}.{row.kernel} ({row.name}) for sm_{target}"
            if row.hot and taken.stack > stack:
                found.append(f"{where} spills: {taken.registers} registers and a stack frame of {taken.stack} bytes")
            if taken.shared > TARGETS[target]:
                found.append(f"{where} needs {taken.shared} bytes of shared memory; there are {TARGETS[target]}")
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/kernels.md."""
    columns = ["Kernel", "Configuration", "Precision", "Warps", *(f"sm_{target}" for target in TARGETS)]
    columns += ["MB", "GFLOP", "Floor, us"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [f"{row.module}.{row.kernel}", row.name + ("" if row.hot else " (rare)"), row.precision, row.num_warps]
        for target in TARGETS:
            taken = row.resources.get(target)
            cells.append(f"{taken.registers} / {taken.shared / 1024:.3g} / {taken.stack}" if taken else "not compiled")
        cells += [f"{row.bytes / 1e6:.3g}", f"{row.flops / 1e9:.3g}", f"{row.floor_us:.3g}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


COMMAND = "python -m pad_fast.kernels.aot --update docs/kernels.md"
BEGIN, END = f"<!-- table: {COMMAND} -->", "<!-- end of table -->"


def compiler() -> str:
    """The line that names the compiler."""
    import triton

    return f"Compiled by Triton {triton.__version__}."


def section(rows: Sequence[Row]) -> str:
    """The part of docs/kernels.md from :data:`BEGIN` to :data:`END`."""
    return f"{BEGIN}\n{compiler()}\n\n{markdown(rows)}\n{END}"


def update(path: Path, rows: Sequence[Row]) -> None:
    """Put the table where docs/kernels.md has it."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(before + section(rows) + after, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 1 where a kernel does not compile, 2 where one is not fit for use."""
    parser = argparse.ArgumentParser(prog="python -m pad_fast.kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/kernels.md has it (default)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this file")
    parser.add_argument("--only", choices=MODULES, nargs="+", default=MODULES, help="kernel modules (default: all)")
    parser.add_argument("--jobs", type=int, help="processes (default: one per core)")
    wanted = parser.parse_args(arguments)
    if interpreted():
        parser.error("TRITON_INTERPRET is set; kernels can only be compiled in a process without it")
    if wanted.update and tuple(wanted.only) != MODULES:
        parser.error("--update writes the whole table; leave --only out")
    try:
        rows = compile_all(wanted.only, jobs=wanted.jobs)
    except CompileFailure as failure:
        print(failure, file=sys.stderr)
        return 1
    if wanted.update:
        update(wanted.update, rows)
    elif wanted.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(markdown(rows))
    found = faults(rows)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 2 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
