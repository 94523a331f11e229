"""`pad_fast._C` against the formulas, in both dtypes, and the checks that stand in front of it."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pad_fast
from pad_fast.errors import BackendError, InputError
from pad_fast.runtime import extension
from pad_fast.scoring import native

from ..support.scores import problem

# Continuous integration sets the variable, so that a broken build cannot turn these tests into skips.
REQUIRED = os.environ.get("PAD_FAST_REQUIRE_EXTENSION") == "1"
needs_extension = pytest.mark.skipif(
    not extension.available() and not REQUIRED, reason=f"pad_fast._C: {extension.unavailable_reason()}"
)

# Lanes are rows up to 64 classes and classes above; 64 rows make a block, and the last one is worked on in a copy.
SHAPES = [(1, 2), (3, 7), (8, 8), (7, 17), (64, 10), (5, 1000), (2, 1), (0, 10)]
SHAPES += [(130, 10), (65, 64), (67, 65), (131, 63), (3, 2500), (66, 33)]
# Largest relative error against the float64 formula seen over these shapes: 1.2 units of float32's 1.2e-7, and 8.8e-16.
ULPS = 2 * torch.finfo(torch.float32).eps
TOLERANCE = {torch.float32: ULPS, torch.float64: 1e-14, torch.bfloat16: ULPS}
DTYPES = list(TOLERANCE)


def naive_el2n(logits: Tensor, labels: Tensor) -> Tensor:
    onehot = torch.nn.functional.one_hot(labels.long(), logits.shape[1])
    return (logits.double().softmax(1) - onehot).norm(dim=1)


@needs_extension
def test_golden_scores(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    data = {name: torch.from_numpy(array) for name, array in golden("scores.npz").items()}
    scores = native.el2n(data["logits"], data["labels"])
    torch.testing.assert_close(scores, data["el2n"], rtol=1e-9, atol=0)
    scores = native.grand(data["logits"], data["embedding"], data["labels"])
    torch.testing.assert_close(scores, data["grand"], rtol=1e-9, atol=0)


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of the scoring loops in turn; skips those this machine lacks."""
    monkeypatch.setenv("PAD_FAST_ISA", request.param)
    if extension.build_info()["instructions"] != request.param:
        pytest.skip(f"this machine has no {request.param}")
    return str(request.param)


@needs_extension
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_scores_match_the_formula(
    rows: int, classes: int, dtype: torch.dtype, label_dtype: torch.dtype, instructions: str
) -> None:
    logits, features, labels = problem(rows, classes, dtype, width=37)
    labels = labels.to(label_dtype)
    expected = naive_el2n(logits, labels)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": 1e-300}
    scores = native.el2n(logits, labels, threads=3)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scores.double(), expected, **tolerance)
    expected = expected * (1 + features.double().square().sum(1)).sqrt()
    scores = native.grand(logits, features, labels, threads=3)
    torch.testing.assert_close(scores.double(), expected, **tolerance)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [10, 100, 1000, 20_000])
def test_float32_is_within_two_ulp_on_extreme_logits(classes: int, dtype: torch.dtype, instructions: str) -> None:
    draws = torch.Generator().manual_seed(classes)
    rows = 400 if classes < 10_000 else 20
    labels = torch.randint(classes, (rows,), generator=draws)
    plain = 5 * torch.randn(rows, classes, generator=draws)
    chosen = torch.nn.functional.one_hot(labels, classes)
    wrong = chosen.roll(1, 1)
    cases = {
        "plain": plain,
        "far off": plain + 1e4,
        "signs of 1e4": 1e4 * plain.sign(),
        "all equal": torch.full_like(plain, -1e4),
        "one hot, right": chosen.float(),
        "one hot, wrong": wrong.float(),
        "1e4 hot, right": 1e4 * chosen,
        "1e4 hot, wrong": 1e4 * wrong,
        "nearly certain": plain + 60 * chosen,
        "nearly impossible": plain - 60 * chosen,
        "tiny": 1e-20 * plain,
    }
    for name, logits in cases.items():
        logits = logits.to(dtype)
        exact = native.el2n(logits.double(), labels)
        assert exact.isfinite().all(), name
        scores = native.el2n(logits, labels).double()
        # Below float32's normal numbers an ulp no longer shrinks with the number.
        error = (scores - exact).abs() / exact.clamp_min(torch.finfo(torch.float32).tiny)
        assert float(error.max()) <= ULPS, f"{name}: {float(error.max()) / ULPS * 2:.2f} ulp"
        # The float64 result in turn against torch, where torch's own formula keeps its digits.
        expected = naive_el2n(logits, labels)
        torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-14)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 100])
def test_moments_over_networks_accumulate_in_place(classes: int, dtype: torch.dtype, instructions: str) -> None:
    rows, networks = 131, 5
    mean, deviations = (torch.full((rows,), float("nan"), dtype=torch.float64) for _ in range(2))
    scores = []
    for seen in range(networks):
        logits, features, labels = problem(rows, classes, dtype, width=9)
        logits = logits + (torch.arange(rows)[:, None] * (seen + 1) % 7 == 3).to(dtype)
        logits = logits.roll(seen, 1)
        scores.append(native.grand(logits.double(), features.double(), labels))
        for piece in torch.arange(rows).split(50):  # streamed in batches
            start, stop = int(piece[0]), int(piece[-1]) + 1
            native.accumulate(
                mean[start:stop],
                deviations[start:stop],
                seen,
                logits[start:stop],
                labels[start:stop],
                features=features[start:stop],
            )
    stacked = torch.stack(scores)
    assert float(stacked.std(0).min()) > 0
    torch.testing.assert_close(mean, stacked.mean(0), rtol=TOLERANCE[dtype], atol=0)
    torch.testing.assert_close((deviations / (networks - 1)).sqrt(), stacked.std(0), rtol=0, atol=20 * TOLERANCE[dtype])


@needs_extension
def test_rows_do_not_depend_on_their_neighbours(instructions: str) -> None:
    for classes in (10, 64, 65, 200):
        logits, _, labels = problem(150, classes, torch.float32)
        whole = native.el2n(logits, labels)
        for start, stop in ((0, 1), (3, 70), (149, 150), (64, 128)):
            piece = native.el2n(logits[start:stop].clone(), labels[start:stop].clone())
            assert torch.equal(piece, whole[start:stop]), (classes, start, stop)


@needs_extension
@pytest.mark.parametrize("width", [0, 1, 8, 19])
def test_grand_is_the_norm_of_the_last_layers_gradient(width: int) -> None:
    logits, features, labels = problem(6, 7, torch.float64, width=width)
    scores = native.grand(logits, features, labels)
    for row in range(6):
        weight = torch.zeros(7, width, dtype=torch.float64, requires_grad=True)
        bias = logits[row].clone().requires_grad_()  # zero weights: the logits are the bias
        loss = torch.nn.functional.cross_entropy((weight @ features[row] + bias)[None], labels[row : row + 1])
        gradients = torch.autograd.grad(loss, (weight, bias))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        torch.testing.assert_close(scores[row], norm, rtol=1e-12, atol=0)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("more", [0, 100])
def test_extreme_logits(dtype: torch.dtype, more: int, instructions: str) -> None:
    inf, nan = float("inf"), float("nan")
    rows = [
        ([1e4, -1e4, -1e4], 0, 0.0),  # certain and right
        ([1e4, -1e4, -1e4], 1, 2**0.5),  # certain and wrong
        ([-1e4, -1e4, -1e4], 2, (2 / 3) ** 0.5),  # all equal: sqrt(1 - 1/K)
        ([1e30, 1e30, -1e30], 0, 0.5**0.5),
        ([0.0, 0.0, -inf], 0, 0.5**0.5),  # a class ruled out
        ([0.0, nan, 1.0], 0, nan),
        ([nan, 0.0, 1.0], 0, nan),
        ([nan, nan, nan], 1, nan),
        ([inf, 0.0, 0.0], 1, nan),
        ([inf, 0.0, 0.0], 0, nan),
        ([-inf, 0.0, 0.0], 0, 1.5**0.5),
        ([0.0, -inf, -inf], 0, 0.0),  # all others ruled out
        ([-inf, -inf, -inf], 0, nan),
    ]
    logits = torch.tensor([row for row, _, _ in rows], dtype=dtype)
    if more:  # classes that are ruled out change nothing, except where all are equal
        logits = torch.cat([logits, torch.full((len(rows), more), -inf, dtype=dtype)], 1)
    labels = torch.tensor([label for _, label, _ in rows])
    expected = torch.tensor([score for _, _, score in rows], dtype=dtype)
    torch.testing.assert_close(native.el2n(logits, labels), expected, rtol=1e-7, atol=0, equal_nan=True)


@needs_extension
def test_near_certain_samples_keep_distinct_scores() -> None:
    margins = torch.arange(20, 90, 5, dtype=torch.float32)
    logits = torch.stack([margins, torch.zeros_like(margins)], 1)
    labels = torch.zeros(len(margins), dtype=torch.int64)
    assert (logits.softmax(1)[:, 0] == 1).all(), "a float32 softmax tells these samples apart already"
    expected = 2**0.5 / (1 + margins.double().exp())
    torch.testing.assert_close(native.el2n(logits, labels).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(native.el2n(logits.double(), labels), expected, rtol=1e-14, atol=0)


@needs_extension
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    logits, features, labels = problem(20_011, 10, torch.float32)
    logits = logits.round(decimals=1)  # so that scores tie
    reference = native.el2n(logits, labels, threads=1)
    order = native.class_order(reference, labels, 10, threads=1)
    for threads in (2, 7):
        assert torch.equal(native.el2n(logits, labels, threads=threads), reference)
        assert torch.equal(
            native.grand(logits, features, labels, threads=threads),
            native.grand(logits, features, labels, threads=1),
        )
        again = native.class_order(reference, labels, 10, threads=threads)
        assert all(torch.equal(one, other) for one, other in zip(order, again, strict=True))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
def test_class_order_is_stable(dtype: torch.dtype, label_dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(3)
    scores = torch.randint(-4, 4, (501,), generator=draws).to(dtype) / 3
    scores[17] = float("inf")
    labels = torch.randint(5, (501,), generator=draws)
    labels[labels == 2] = 4  # class 2 is empty
    order = native.class_order(scores, labels.to(label_dtype), 5)
    assert [len(indices) for indices in order] == torch.bincount(labels, minlength=5).tolist()
    for label, indices in enumerate(order):
        members = [index for index in range(501) if labels[index] == label]
        assert indices.dtype == torch.int64
        assert indices.tolist() == sorted(members, key=lambda index: (float(scores[index]), index))
    assert native.class_order(scores[:0], labels[:0], 3)[2].tolist() == []


@needs_extension
def test_inputs_are_left_alone_and_autograd_sees_nothing() -> None:
    logits, features, labels = problem(9, 4, torch.float32)
    before = [tensor.clone() for tensor in (logits, features, labels)]
    assert not native.grand(logits.requires_grad_(), features, labels).requires_grad
    assert all(torch.equal(now, then) for now, then in zip((logits, features, labels), before, strict=True))


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(4, 3, dtype=torch.float16)}, r"logits is torch.float16; convert it to"),
        ({"logits": torch.zeros(4)}, r"logits has shape \[4\]; 2 dimensions"),
        ({"logits": torch.zeros(3, 4).T}, r"logits is not contiguous; pass logits.contiguous\(\)"),
        ({"logits": torch.zeros(4, 3, device="meta")}, r"logits is on meta; this runs on the CPU"),
        (
            {"labels": torch.zeros(4, dtype=torch.int64, device="meta")},
            r"labels is on meta, but cpu is needed; pass labels.to\('cpu'\)",
        ),
        ({"logits": torch.zeros(4, 0)}, r"number of classes is 0"),
        ({"labels": torch.zeros(4, dtype=torch.int16)}, r"labels is torch.int16; convert it to torch.int32 or"),
        ({"labels": torch.zeros(8, dtype=torch.int64)[::2]}, r"labels is not contiguous"),
        ({"labels": torch.tensor([0, 1, 3, 0], dtype=torch.int32)}, r"labels reach from 0 to 3"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"labels has 5 entries for 4 samples"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, r"labels reach from 0 to 3; they must lie in \[0, 3\)"),
        ({"labels": torch.tensor([0, -1, 2, 0])}, r"labels reach from -1 to 2"),
        ({"features": torch.zeros(3, 5)}, r"features has 3 rows, logits has 4"),
        ({"features": torch.zeros(4, 5, dtype=torch.float64)}, r"features is torch.float64; convert it to"),
        ({"threads": 0}, r"threads is 0"),
    ],
)
def test_scores_refuse_what_they_cannot_read(arguments: dict[str, object], message: str) -> None:
    valid = {"logits": torch.zeros(4, 3), "features": torch.zeros(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    native.grand(**valid)
    with pytest.raises(InputError, match=message):
        native.grand(**{**valid, **arguments})
    if "features" not in arguments:
        del valid["features"]
        with pytest.raises(InputError, match=message):
            native.el2n(**{**valid, **arguments})


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": torch.zeros(4)}, r"mean is torch.float32; convert it to torch.float64"),
        ({"mean": torch.zeros(5, dtype=torch.float64)}, r"mean has 5 entries for 4 samples"),
        ({"deviations": torch.zeros(8, dtype=torch.float64)[::2]}, r"deviations is not contiguous"),
        ({"deviations": torch.zeros(4, 1, dtype=torch.float64)}, r"deviations has shape \[4, 1\]"),
        ({"seen": -1}, r"seen is -1"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, r"labels reach from 0 to 3"),
        ({"features": torch.zeros(3, 5)}, r"features has 3 rows"),
    ],
)
def test_moments_refuse_what_they_cannot_hold(arguments: dict[str, object], message: str) -> None:
    mean, deviations = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    valid = {"mean": mean, "deviations": deviations, "seen": 0, "logits": torch.zeros(4, 3)}
    valid |= {"labels": torch.tensor([0, 1, 2, 0])}
    native.accumulate(**valid)
    before = mean.clone()
    with pytest.raises(InputError, match=message):
        native.accumulate(**{**valid, **arguments})
    with pytest.raises(InputError, match="the same memory"):
        native.accumulate(**{**valid, "deviations": mean})
    assert torch.equal(mean, before)


@needs_extension
def test_class_order_refuses_what_it_cannot_sort() -> None:
    scores, labels = torch.tensor([0.1, float("nan")]), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"scores\[1\] is NaN"):
        native.class_order(scores, labels, 2)
    with pytest.raises(InputError, match=r"labels reach from 0 to 1"):
        native.class_order(scores, labels, 1)
    with pytest.raises(InputError, match=r"scores is torch.int64"):
        native.class_order(labels, labels, 2)
    with pytest.raises(InputError, match=r"number of classes is -1"):
        native.class_order(scores, labels, -1)


@needs_extension
def test_the_stub_lists_what_the_extension_has() -> None:
    stub = ast.parse((Path(pad_fast.__file__).parent / "_C.pyi").read_text(encoding="utf-8"))
    functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    module = extension.loaded()
    compiled = {name for name in dir(module) if not name.startswith("_")}
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    listed = {name for name in functions if extension.build_info()["cuda"] or not name.endswith("_cuda")}
    assert compiled == listed | set(classes)
    for name, declared in classes.items():
        members = {item.name for item in declared.body if isinstance(item, ast.FunctionDef)}
        public = {member for member in vars(getattr(module, name)) if not member.startswith("_")}
        assert members - {"__init__"} == public, name
    for name, node in functions.items():
        if name not in compiled:
            continue
        # pybind11 documents each function as "name(argument: type, ...) -> type".
        arguments = getattr(module, name).__doc__.partition("(")[2].partition(")")[0]
        names = [argument.partition(":")[0].strip() for argument in arguments.split(",") if argument]
        listed_names = [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]]
        assert [found for found in names if found != "*"] == listed_names, name


@needs_extension
def test_build_info() -> None:
    info = extension.build_info()
    assert info["standard"] == "C++17"
    assert info["instructions"] in ("avx512", "avx2", "baseline")
    assert isinstance(info["cuda"], bool)
    assert extension.unavailable_reason() == ""
    record = extension.build_record()
    assert record is not None
    assert record["extension"] is True
    assert (record["cuda"] is not None) == info["cuda"]


@needs_extension
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(
    extension.available() and not extension.build_info()["cuda"], reason="pad_fast._C has no CUDA kernels"
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("rows", "classes"), [*SHAPES, (70_001, 10), (70_001, 100), (300, 32), (9, 256), (9, 512), (3, 1024), (2, 1500)]
)
def test_gpu_scores_equal_the_cpus(rows: int, classes: int, label_dtype: torch.dtype, dtype: torch.dtype) -> None:
    logits, features, labels = problem(rows, classes, dtype, width=37)
    labels = labels.to(label_dtype)
    if rows > 4:
        logits[1], logits[2], logits[3, 0] = 1e4, float("-inf"), float("nan")
    on_gpu = [tensor.cuda() for tensor in (logits, features, labels)]
    torch.cuda.synchronize()  # the copies are on another stream than the one below
    with torch.cuda.stream(torch.cuda.Stream()):
        el2n = native.el2n(on_gpu[0], on_gpu[2])
        grand = native.grand(*on_gpu)
        assert el2n.device == grand.device == on_gpu[0].device
        moments = torch.full((2, rows), float("nan"), dtype=torch.float64, device="cuda")
        for seen in range(2):
            native.accumulate(moments[0], moments[1], seen, on_gpu[0] * (seen + 1), on_gpu[2])
        el2n, grand, moments = el2n.cpu(), grand.cpu(), moments.cpu()
    tolerance = {"rtol": TOLERANCE[dtype], "atol": 1e-300, "equal_nan": True}
    torch.testing.assert_close(el2n, native.el2n(logits, labels), **tolerance)
    torch.testing.assert_close(grand, native.grand(logits, features, labels), **tolerance)
    both = torch.stack([native.el2n(logits * factor, labels).double() for factor in (1, 2)])
    torch.testing.assert_close(moments[0], both.mean(0), **{**tolerance, "rtol": 4 * TOLERANCE[dtype]})
    torch.testing.assert_close(moments[1].sqrt(), both.std(0), rtol=0, atol=20 * TOLERANCE[dtype], equal_nan=True)


def test_without_the_extension_calls_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_module", None)
    monkeypatch.setattr(extension, "_reason", "no compiler that day")
    assert not extension.available()
    assert extension.unavailable_reason() == "no compiler that day"
    logits, features, labels = problem(3, 4, torch.float32)
    for call in (
        lambda: native.el2n(logits, labels),
        lambda: native.grand(logits, features, labels),
        lambda: native.class_order(logits[:, 0], labels, 4),
        extension.build_info,
    ):
        with pytest.raises(BackendError, match=r"pad_fast\._C is not available: no compiler that day"):
            call()


def test_reasons_follow_the_build_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = tmp_path / "_build.json"
    monkeypatch.setattr(extension, "_BUILD_RECORD", record)
    monkeypatch.delattr(pad_fast, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "pad_fast._C", None)  # makes the import fail

    def reason() -> str:
        module, text = extension._load()
        assert module is None
        return text

    assert "pip install -e ." in reason()
    record.write_text('{"extension": false, "reason": "no C++ compiler found"}', encoding="utf-8")
    assert reason() == "it was not built when pad_fast was installed: no C++ compiler found"
    record.write_text('{"extension": true, "python": "3.11.9"}', encoding="utf-8")
    assert reason().startswith("it was built for Python 3.11.9, but cannot be loaded: ")
    record.write_text('{"extension": tr', encoding="utf-8")
    assert extension.build_record() is None
