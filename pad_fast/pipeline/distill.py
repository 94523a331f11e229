"""`pad_fast.distill`: settings and folder of a run out of what its caller gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.distilled import DistilledDataset
from ..runs.trackers import require_trackers
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..settings.config import Config
from ..settings.resolve import make_settings
from .pipeline import Pipeline


def distill(
    dataset: Any = "digits",
    *,
    ipc: int = 1,
    method: str = "pad",
    config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: str = "auto",
    backend: str = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    log: str | Sequence[str] = (),
    progress: Progress | None = None,
    **overrides: Any,
) -> DistilledDataset:
    """Distil a data set into `ipc` synthetic images per class.

    Runs difficulty scoring, expert training, distillation and evaluation, keeps every stage in `out`, and reuses a
    stage whose settings have not changed. Same seed and machine: same files.

    Args:
        dataset: a name ("digits" needs no download), "imagefolder:PATH", tensors, or torch data sets; see
            :func:`pad_fast.load_dataset`.
        ipc: synthetic images per class.
        method: "pad", "datm", "ftd", "mtt" or "tesla": settings of trajectory matching; "dc" or "dsa" (gradient
            matching) or "dm" (distribution matching).
        config: a YAML file (ours or the reference's), a mapping, or a ready :class:`Config`, which then decides
            everything that is not given in `overrides`.
        preset: published settings by name, e.g. "cifar10-ipc10".
        out: folder of the run; default `runs/<dataset>-ipc<ipc>-<method>`.
        data_dir: where downloaded data sets are; `download` fetches a data set that is not there yet.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: engine, see `pad_fast.engines.backends()`.
        seed: of everything random.
        resume: continue from the checkpoint in `out`; ends with the result of an undisturbed run.
        overwrite: allow `out` to hold a run with other settings, whose results are replaced.
        log: "tensorboard" or "wandb", or both: send the numbers there as well, through their own packages.
        **overrides: any field of :class:`Config`, or a key of the reference's YAML files.

    Returns:
        The distilled set, with `evaluation` rows and `history` filled in.

    Raises:
        InputError: settings, data or files that cannot be used; before any work starts.
        DistillationStopped: the loss turned NaN, or nothing was ever updated; a checkpoint is in `out`.

    Example:
        >>> import tempfile, pad_fast
        >>> result = pad_fast.distill(out=tempfile.mkdtemp(), num_experts=1, train_epochs=4, max_start_epoch=2,
        ...     score_networks=1, score_epochs=1, syn_steps=2, iterations=2, eval_networks=1, eval_epochs=2,
        ...     eval_full_epochs=1, add_end_epoch=1, removal1_epoch=2, removal2_epoch=3,
        ...     progress=Progress(quiet=True))
        >>> result.images.shape
        torch.Size([10, 1, 8, 8])
    """
    progress = progress or Progress()
    trackers = (log,) if isinstance(log, str) else tuple(log)
    require_trackers(trackers)
    named = dataset if isinstance(dataset, str) else None
    written: dict[str, Any] = {}
    if isinstance(config, Config):
        written = config.describe()
    elif isinstance(config, Mapping):
        written = dict(config)
    arguments = {**written, **overrides}
    # An explicit argument beats the file; an argument left at its default does not.
    for name, value, default in (("seed", seed, 0), ("backend", backend, "auto"), ("ipc", ipc, 1)):
        if value != default:
            arguments[name] = value
    if method != "pad":
        arguments["method"] = method
    if named is not None and named != "digits":
        arguments["dataset"] = named
    file = os.fspath(config) if isinstance(config, (str, os.PathLike)) else None
    if named is None:
        arguments["dataset"] = getattr(dataset, "name", "tensors")
    settings = make_settings(preset_name=preset, file=file, overrides=arguments)
    run_config = settings.config
    where = resolve_device(device if device != "auto" else settings.device)
    if out is None:
        label = "".join(c if c.isalnum() else "-" for c in run_config.dataset.rpartition("/")[2].lower())
        out = Path("runs") / f"{label}-ipc{run_config.ipc}-{run_config.method}"
    pipeline = Pipeline(run_config, Path(out), where, progress, resume=resume, overwrite=overwrite, log=trackers)
    where_from = data_dir or settings.data_dir
    return pipeline.run(run_config.dataset if named is not None else dataset, where_from, download=download)
