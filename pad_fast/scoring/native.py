"""The scores of `pad_fast._C` on torch tensors: difficulty, its running mean, and orders.

Every wrapper checks dtype, shape, memory layout, device and label range before an address crosses over. The
extension is optional: :mod:`pad_fast.runtime.extension` says whether it is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BackendError, InputError
from ..runtime.extension import available, build_info, build_record, loaded

FLOATS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
LABELS = {torch.int32: "i32", torch.int64: "i64"}


def serves(*tensors: Tensor) -> bool:
    """Whether the extension is there and computes scores of these tensors; gradients it does not."""
    if not available() or any(tensor.requires_grad or tensor.dtype not in FLOATS for tensor in tensors):
        return False
    kinds = {tensor.device.type for tensor in tensors}
    return kinds == {"cpu"} or (kinds == {"cuda"} and bool(build_info()["cuda"]))


def el2n(logits: Tensor, labels: Tensor, *, threads: int | None = None) -> Tensor:
    """EL2N difficulty `||softmax(z) - onehot(y)||_2` of every sample (Paul et al. 2021, arXiv 2107.07075).

    The entry `1 - p_y` is computed from the sum of the other classes, so that samples classified with near certainty
    keep distinct scores. A NaN logit gives a NaN score. Nothing is recorded for autograd.

    Args:
        logits: `[N, K]`, float32, float64 or bfloat16, contiguous; on the CPU, or on a GPU where CUDA kernels are
            built.
        labels: `[N]`, int32 or int64, in `[0, K)`, contiguous, on the same device.
        threads: CPU threads; `torch.get_num_threads()` by default. The result does not depend on it.

    Returns:
        Scores `[N]` between 0 and sqrt(2) on the device of `logits`: float64 for float64, else float32, within 2 units
        of its last place of the float64 result for the same logits.

    Raises:
        InputError: a tensor that does not fit the description above.
        BackendError: the extension is not loaded, or CUDA refuses.

    Example:
        >>> el2n(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.7071, 1.2456])
    """
    rows = _check_logits(logits, labels, None)
    out = torch.empty(rows, dtype=score_dtype(logits.dtype), device=logits.device)
    _score(logits, labels, None, scores=out, threads=threads)
    return out


def grand(logits: Tensor, features: Tensor, labels: Tensor, *, threads: int | None = None) -> Tensor:
    """Last-layer GraNd `EL2N * sqrt(1 + ||h||^2)` of every sample (Paul et al. 2021, arXiv 2107.07075).

    It equals the norm of the sample's cross-entropy gradient in the weights and the bias of the last layer, which is
    never formed.

    Args:
        logits: `[N, K]` as in :func:`el2n`.
        features: `[N, F]`, the last layer's inputs, contiguous; dtype and device of `logits`.
        labels: `[N]` as in :func:`el2n`.
        threads: CPU threads; `torch.get_num_threads()` by default. The result does not depend on it.

    Returns:
        Scores `[N]`, dtype and device as in :func:`el2n`.

    Raises:
        InputError: a tensor that does not fit the description above.
        BackendError: the extension is not loaded, or CUDA refuses.

    Example:
        >>> grand(torch.zeros(1, 2), torch.tensor([[2.0, 2.0, 4.0]]), torch.tensor([1]))
        tensor([3.5355])
    """
    rows = _check_logits(logits, labels, features)
    out = torch.empty(rows, dtype=score_dtype(logits.dtype), device=logits.device)
    _score(logits, labels, features, scores=out, threads=threads)
    return out


def accumulate(
    mean: Tensor,
    deviations: Tensor,
    seen: int,
    logits: Tensor,
    labels: Tensor,
    *,
    features: Tensor | None = None,
    threads: int | None = None,
) -> None:
    """Add one network's scores to a running mean over networks, in place and without storing them (Welford 1962).

    Args:
        mean: float64 `[N]`, contiguous, on the device of `logits`: the mean over `seen` networks.
        deviations: float64 `[N]` likewise: the sum of squared deviations from that mean, so that the variance over n
            networks is `deviations / (n - 1)`.
        seen: networks that are in both already; with 0 their contents are overwritten.
        logits, labels: as in :func:`el2n`.
        features: with them the score is :func:`grand`, without it is :func:`el2n`.
        threads: as in :func:`el2n`.

    Raises:
        InputError: a tensor that does not fit the description above.
        BackendError: the extension is not loaded, or CUDA refuses.

    Example:
        >>> mean, deviations = torch.empty(1, dtype=torch.float64), torch.empty(1, dtype=torch.float64)
        >>> for seen, margin in enumerate([0.0, 50.0]):
        ...     accumulate(mean, deviations, seen, torch.tensor([[margin, 0.0]]), torch.tensor([0]))
        >>> mean, deviations
        (tensor([0.3536], dtype=torch.float64), tensor([0.2500], dtype=torch.float64))
    """
    rows = _check_logits(logits, labels, features)
    for name, tensor in (("mean", mean), ("deviations", deviations)):
        _check_tensor(name, tensor, (torch.float64,), dims=1, device=logits.device)
        if tensor.shape[0] != rows:
            raise InputError(f"{name} has {tensor.shape[0]} entries for {rows} samples; pass the same rows of it")
    if rows and mean.data_ptr() == deviations.data_ptr():
        raise InputError("mean and deviations are the same memory; pass two tensors")
    if seen < 0:
        raise InputError(f"seen is {seen}; it counts the networks that were added before, from 0")
    _score(logits, labels, features, mean=mean, deviations=deviations, seen=seen, threads=threads)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the scores of logits of `dtype`: float64 for float64, else float32.

    bfloat16 scores would be mostly ties.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def class_order(scores: Tensor, labels: Tensor, classes: int, *, threads: int | None = None) -> list[Tensor]:
    """Sample indices of every class from easy (low score) to hard (high), ties by index.

    Args:
        scores: `[N]`, float32 or float64, free of NaN, contiguous, on the CPU.
        labels: `[N]`, int32 or int64, in `[0, classes)`, contiguous, on the CPU.
        classes: number of classes; one without samples gets an empty tensor.
        threads: CPU threads; `torch.get_num_threads()` by default. The result does not depend on it.

    Returns:
        One int64 index tensor per class.

    Raises:
        InputError: a tensor that does not fit the description above.
        BackendError: the extension is not loaded.

    Example:
        >>> class_order(torch.tensor([0.5, 0.1, 0.5, 0.2]), torch.tensor([1, 0, 1, 1]), 2)
        [tensor([1]), tensor([3, 0, 2])]
    """
    extension = loaded()
    _check_tensor("scores", scores, (torch.float32, torch.float64), dims=1, device=torch.device("cpu"))
    _check_labels(labels, scores.shape[0], classes, device=scores.device)
    if scores.isnan().any():
        first = int(scores.isnan().nonzero()[0])
        raise InputError(f"scores[{first}] is NaN, which has no place in an order; drop or recompute it")
    order = torch.empty(scores.shape[0], dtype=torch.int64)
    offsets = torch.empty(classes + 1, dtype=torch.int64)
    extension.class_order(
        dtype=FLOATS[scores.dtype],
        label_dtype=LABELS[labels.dtype],
        order=order.data_ptr(),
        offsets=offsets.data_ptr(),
        scores=scores.data_ptr(),
        labels=labels.data_ptr(),
        rows=scores.shape[0],
        classes=classes,
        threads=_check_threads(threads),
    )
    return list(order.split(offsets.diff().tolist()))


def _score(
    logits: Tensor,
    labels: Tensor,
    features: Tensor | None,
    *,
    scores: Tensor | None = None,
    mean: Tensor | None = None,
    deviations: Tensor | None = None,
    seen: int = 0,
    threads: int | None,
) -> None:
    """Cross over; every tensor has been checked."""
    extension = loaded()

    def address(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    arguments = {
        "dtype": FLOATS[logits.dtype],
        "label_dtype": LABELS[labels.dtype],
        "logits": logits.data_ptr(),
        # GraNd of no features is EL2N, and memory of size 0 has no address.
        "features": address(features),
        "labels": labels.data_ptr(),
        "rows": logits.shape[0],
        "classes": logits.shape[1],
        "width": 0 if features is None else features.shape[1],
        "scores": address(scores),
        "mean": address(mean),
        "deviations": address(deviations),
        "seen": seen,
    }
    threads = _check_threads(threads)
    if logits.device.type == "cpu":
        extension.score(**arguments, threads=threads)
        return
    stream = torch.cuda.current_stream(logits.device).cuda_stream
    refusal = extension.score_cuda(**arguments, device=logits.device.index, stream=stream)
    if refusal is not None:
        raise BackendError(f"scoring on {logits.device}: {refusal}; the same tensors on the CPU would do")


def _check_logits(logits: Tensor, labels: Tensor, features: Tensor | None) -> int:
    """Rows of tensors that fit together on a device that the extension serves."""
    extension = loaded()
    device = logits.device
    if device.type == "cuda" and not extension.build_info()["cuda"]:
        reason = (build_record() or {}).get("cuda_reason")
        raise InputError(
            f"logits is on {device}, and pad_fast._C was built without CUDA kernels ({reason}); pass logits.cpu()"
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"logits is on {device}; this runs on the CPU and on CUDA devices, pass logits.cpu()")
    _check_tensor("logits", logits, tuple(FLOATS), dims=2, device=device)
    rows, classes = logits.shape
    _check_labels(labels, rows, classes, device=device)
    if features is not None:
        _check_tensor("features", features, (logits.dtype,), dims=2, device=device)
        if features.shape[0] != rows:
            raise InputError(f"features has {features.shape[0]} rows, logits has {rows}; pass one row per sample")
    return int(rows)


def _check_labels(labels: Tensor, rows: int, classes: int, *, device: torch.device) -> None:
    if classes < 1:
        raise InputError(f"the number of classes is {classes}; there must be at least one")
    _check_tensor("labels", labels, tuple(LABELS), dims=1, device=device)
    if labels.shape[0] != rows:
        raise InputError(f"labels has {labels.shape[0]} entries for {rows} samples; pass one per sample")
    if device.type == "cpu":
        # Not by torch, whose OpenMP threads would go on spinning and take the cores from the scoring that follows.
        fit = loaded().labels_fit(
            label_dtype=LABELS[labels.dtype], labels=labels.data_ptr(), rows=rows, classes=classes
        )
        if fit:
            return
    if rows:
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= classes:
            raise InputError(f"labels reach from {low} to {high}; they must lie in [0, {classes})")


def _check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], *, dims: int, device: torch.device
) -> None:
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise InputError(f"{name} is {tensor.dtype}; convert it to {wanted}")
    if tensor.dim() != dims:
        raise InputError(f"{name} has shape {list(tensor.shape)}; {dims} dimensions are needed")
    if tensor.device != device:
        raise InputError(f"{name} is on {tensor.device}, but {device} is needed; pass {name}.to('{device}')")
    if not tensor.is_contiguous():
        raise InputError(f"{name} is not contiguous; pass {name}.contiguous()")


def _check_threads(threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if threads < 1:
        raise InputError(f"threads is {threads}; at least 1 is needed")
    return threads
