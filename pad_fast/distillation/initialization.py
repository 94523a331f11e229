"""The synthetic set before its first update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import DSA, ImageDataset
from ..engines import Engine, Task
from ..errors import DatasetError
from ..experts import ExpertStore
from ..runtime.rng import generator


@dataclass(frozen=True, eq=False)
class InitialSet:
    """Images `[N, C, H, W]`, classes `[N]`, label logits `[N, classes]`, and what the user should be told."""

    images: Tensor
    labels: Tensor
    label_logits: Tensor
    notes: tuple[str, ...]


def average_correct_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Soft labels (DATM): per image the mean logits of the experts that classify it correctly.

    Args:
        logits: `[experts, N, classes]`.
        labels: int64 `[N]`.

    Returns:
        Label logits `[N, classes]` (mean over all experts where none is correct), and how many were correct `[N]`.
    """
    correct = logits.argmax(-1) == labels  # [experts, N]
    weight = torch.where(correct.any(0), correct, torch.ones_like(correct)).to(logits.dtype)
    return (logits * weight[..., None]).sum(0) / weight.sum(0)[:, None], correct.sum(0)


class Teachers:
    """The last snapshots of all experts as classifiers.

    Snapshots hold parameters only. For batch norm, :meth:`calibrate` supplies the images whose statistics take the
    place of the running ones that were not kept.
    """

    def __init__(self, store: ExpertStore, engine: Engine, task: Task) -> None:
        self.store, self.engine, self.task = store, engine, task
        self._norms = [
            module for module in task.network.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        self._sample: Tensor | None = None
        self._calibrated: int | None = None

    def __len__(self) -> int:
        return len(self.store)

    def logits(self, expert: int, images: Tensor, *, chunk: int = 512) -> Tensor:
        """Logits `[N, classes]` of one expert, on the CPU."""
        theta = self.store.snapshot(expert, -1).to(self.task.device)
        self._use_statistics_of(expert, theta, chunk)
        self.task.network.module.eval()
        pieces = [
            self.engine.forward(self.task, theta, piece.to(self.task.device)).cpu() for piece in images.split(chunk)
        ]
        return torch.cat(pieces)

    def calibrate(self, images: Tensor, *, count: int = 1024) -> None:
        """Take batch-norm statistics over about `count` of these images `[n, C, H, W]`, spread evenly."""
        self._sample = images[:: max(1, len(images) // count)]
        self._calibrated = None

    def _use_statistics_of(self, expert: int, theta: Tensor, chunk: int) -> None:
        if self._sample is None or not self._norms or self._calibrated == expert:
            return
        usual = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the plain average over all batches
        self.task.network.module.train()
        for piece in self._sample.split(chunk):
            self.engine.forward(self.task, theta, piece.to(self.task.device))
        for norm, momentum in zip(self._norms, usual, strict=True):
            norm.momentum = momentum
        self._calibrated = expert


def initial_set(
    kind: str, counts: Sequence[int], images: Tensor, data: ImageDataset, teachers: Teachers, *, dsa: str, seed: int
) -> InitialSet:
    """Choose the first synthetic images.

    Args:
        kind: "samples_predicted_correctly" (real images that an expert's last snapshot classifies correctly, in
            random order, going on to further experts while short), "real", or "noise".
        counts: images of every class.
        images: normalised training images `[n, C, H, W]` on the CPU.
        dsa: augments copies of the images of a class that has fewer.

    Raises:
        DatasetError: all classes have fewer images.
    """
    by_class = data.images_by_class()
    if kind != "noise":
        require_images([len(members) for members in by_class], counts)
    teachers.calibrate(images)
    each = torch.tensor(counts)
    labels = torch.arange(data.classes).repeat_interleave(each)
    notes: list[str] = []
    if kind == "noise":
        chosen = noise_images(len(labels), images, seed)
        # No expert knows what noise shows, so each class starts from its own images' mean label.
        some = [_soft_labels(teachers, images[few], data.train_labels[few]) for few in (m[:64] for m in by_class)]
        logits = torch.cat([few.mean(0, keepdim=True) for few in some])
        return InitialSet(chosen, labels, logits.repeat_interleave(each, 0), ())
    if kind == "real":
        picked = [rows[:count] for rows, count in zip(shuffled_classes(by_class, seed), counts, strict=True)]
    else:
        picked = _predicted_correctly(counts, images, data, teachers, seed, notes)
    chosen, said = with_copies(picked, counts, images, data.class_names, dsa=dsa, seed=seed)
    return InitialSet(chosen, labels, _soft_labels(teachers, chosen, labels), (*notes, *said))


def require_images(sizes: Sequence[int], counts: Sequence[int]) -> None:
    """Check that not every class has fewer images than are to be made of it.

    Raises:
        DatasetError: it has.
    """
    if all(size < count for size, count in zip(sizes, counts, strict=True)):
        raise DatasetError(
            f"ipc is {min(counts)}, and no class has more than {max(sizes)} training images; lower ipc or use pix_init "
            "noise"
        )


def with_copies(
    picked: Sequence[Tensor], counts: Sequence[int], images: Tensor, names: Sequence[str], *, dsa: str, seed: int
) -> tuple[Tensor, list[str]]:
    """So many images of each class: those picked, and augmented copies of them where they are too few.

    Args:
        picked: indices into `images` `[n, C, H, W]` per class, no more than its count.
        dsa: strategy of the augmentation; without one, copies are shifted, zoomed and turned.

    Returns:
        `[sum of counts, C, H, W]`, class after class, and a sentence about each class with copies.
    """
    augment = DSA(dsa) if DSA(dsa).operations else DSA("crop_scale_rotate")
    pieces, notes = [], []
    for label, (rows, count) in enumerate(zip(picked, counts, strict=True)):
        pieces.append(images[rows])
        missing, draws = count - len(rows), generator(seed, "init copies", label)
        if missing:
            notes.append(
                f"class {label} ({names[label]}) has {len(rows)} training images for ipc {count}; augmented copies of "
                f"them are the other {missing} to begin with"
            )
        while missing:
            copied = rows[:missing]
            pieces.append(augment(images[copied], generator=draws))
            missing -= len(copied)
    return torch.cat(pieces), notes


def noise_images(count: int, like: Tensor, seed: int) -> Tensor:
    """Standard normal `[count, C, H, W]` on the CPU, for `like` `[n, C, H, W]`."""
    return torch.randn(count, *like.shape[1:], generator=generator(seed, "init noise"))


def shuffled_classes(by_class: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Indices of every class in random order."""
    return [
        members[torch.randperm(len(members), generator=generator(seed, "init images", label))]
        for label, members in enumerate(by_class)
    ]


def _soft_labels(teachers: Teachers, images: Tensor, labels: Tensor) -> Tensor:
    logits = torch.stack([teachers.logits(expert, images) for expert in range(len(teachers))])
    return average_correct_logits(logits, labels)[0]


def _predicted_correctly(
    counts: Sequence[int], images: Tensor, data: ImageDataset, teachers: Teachers, seed: int, notes: list[str]
) -> list[Tensor]:
    candidates = shuffled_classes(data.images_by_class(), seed)
    picked: list[list[int]] = [[] for _ in candidates]
    for expert in range(len(teachers)):
        short = [label for label, rows in enumerate(picked) if len(rows) < counts[label]]
        if not short:
            break
        for label in short:
            right = teachers.logits(expert, images[candidates[label]]).argmax(-1) == label
            taken = set(picked[label])
            new = [row for row in candidates[label][right].tolist() if row not in taken]
            picked[label] += new[: counts[label] - len(picked[label])]
    for label, chosen in enumerate(picked):
        missing = min(counts[label], len(candidates[label])) - len(chosen)
        if missing:
            taken = set(chosen)
            rest = [row for row in candidates[label].tolist() if row not in taken]
            chosen += rest[:missing]
            notes.append(
                f"class {label} ({data.class_names[label]}): experts classify only {len(chosen) - missing} of "
                f"{len(chosen)} images correctly; filled up with {missing} other real images"
            )
    return [torch.tensor(rows) for rows in picked]
