"""`pad_fast.distill`: settings and folder of a run out of what its caller gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.distilled import DistilledDataset
from ..data.sources import spelled
from ..runs.trackers import require_trackers
from ..runtime.device import resolve_device
from ..runtime.progress import Progress
from ..settings.config import Config
from ..settings.resolve import UNSET, Unset, make_settings
from .checks import place_of, require_folder_name, with_places
from .pipeline import Pipeline


def distill(
    dataset: Any = UNSET,
    *,
    ipc: int | Mapping[str, int] | Unset = UNSET,
    method: str | Unset = UNSET,
    config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None | Unset = UNSET,
    download: bool = False,
    device: str | Unset = UNSET,
    backend: str | Unset = UNSET,
    seed: int | Unset = UNSET,
    resume: bool = False,
    overwrite: bool = False,
    log: str | Sequence[str] = (),
    progress: Progress | bool | None = None,
    **overrides: Any,
) -> DistilledDataset:
    """Distil a data set into `ipc` synthetic images per class.

    Runs difficulty scoring, expert training, distillation and evaluation, keeps every stage in `out`, and reuses a
    stage whose settings have not changed. Same seed and machine: same files. A call that was killed is continued by
    repeating it, or by :func:`resume`, which needs nothing but the folder.

    A setting that is given beats `config`, which beats `preset`, which beats the default; `UNSET` is not given.

    Args:
        dataset: a name ("digits", the default, needs no download), "imagefolder:PATH", "hf:NAME", a .npz file, tensors,
            or torch or Hugging Face data sets; see :func:`pad_fast.load_dataset`.
        ipc: synthetic images per class; 1 by default. A mapping of class names gives these their own numbers.
        method: "pad" (the default), "datm", "ftd", "mtt" or "tesla": settings of trajectory matching; "dc" or "dsa"
            (gradient matching) or "dm" (distribution matching).
        config: a YAML file (ours or the reference's), a mapping, or a ready :class:`Config`, which then decides
            everything that is not given in `overrides`.
        preset: published settings by name, e.g. "cifar10-ipc10".
        out: folder of the run; default `runs/<dataset>-ipc<ipc>-<method>`.
        data_dir: where downloaded data sets are; `download` fetches a data set that is not there yet.
        device: "auto" (the default), "cpu", "cuda" or "cuda:N".
        backend: engine, see `pad_fast.engines.backends()`; "auto" by default.
        seed: of everything random; 0 by default.
        resume: the run in `out` may be continued for more iterations than it was begun with; ends with the result of an
            undisturbed run. With the same settings it is continued anyway.
        overwrite: allow `out` to hold a run with other settings, whose results are replaced; its iterations begin anew.
        log: "tensorboard" or "wandb", or both: send the numbers there as well, through their own packages.
        progress: False for none.
        **overrides: any field of :class:`Config`, or a key of the reference's YAML files.

    Returns:
        The distilled set, with `evaluation` rows and `history` filled in.

    Raises:
        InputError: settings, data or files that cannot be used; before any work starts.
        DistillationStopped: the loss turned NaN, or nothing was ever updated, and `back_off` was not given, or found no
            way out; a checkpoint is in `out`.

    Example:
        >>> import tempfile, pad_fast
        >>> result = pad_fast.distill(out=tempfile.mkdtemp(), num_experts=1, train_epochs=4, max_start_epoch=2,
        ...     score_networks=1, score_epochs=1, syn_steps=2, iterations=2, eval_networks=1, eval_epochs=2,
        ...     eval_full_epochs=1, add_end_epoch=1, removal1_epoch=2, removal2_epoch=3,
        ...     progress=Progress(quiet=True))
        >>> result.images.shape
        torch.Size([10, 1, 8, 8])
    """
    progress = Progress.of(progress)
    require_folder_name(out)
    trackers = (log,) if isinstance(log, str) else tuple(log)
    require_trackers(trackers)
    if isinstance(dataset, os.PathLike):
        dataset = spelled(dataset)
    named = dataset is UNSET or isinstance(dataset, str)
    settings = make_settings(
        preset_name=preset,
        config=config,
        overrides={
            "dataset": dataset if named else getattr(dataset, "name", "tensors"),
            "ipc": ipc,
            "method": method,
            "backend": backend,
            "seed": seed,
            **overrides,
        },
        data_dir=data_dir,
        device=device,
    )
    for note in settings.notes:
        progress.say(note)
    run_config = settings.config
    folder = Path(out) if out is not None else default_folder(run_config)
    run_config = with_places(run_config)
    pipeline = Pipeline(
        run_config,
        folder,
        resolve_device(settings.device),
        progress,
        resume=resume,
        overwrite=overwrite,
        log=trackers,
        place=place_of(settings, named=named),
    )
    return pipeline.run(run_config.dataset if named else dataset, settings.data_dir, download=download)


def default_folder(config: Config) -> Path:
    """The folder of a run that is given none."""
    return Path("runs") / f"{_label(config.dataset)}-ipc{config.ipc}-{config.method}"


def _label(dataset: str) -> str:
    """A data set's name as a part of a folder's."""
    last = dataset.rstrip("/").rpartition("/")[2].lower()
    if last.rpartition(":")[2] in ("", ".", ".."):
        last = Path(dataset.rpartition(":")[2] or "/").resolve().name.lower()
    return "".join(c if c.isalnum() else "-" for c in last) or "data"
