"""Training sets of an evaluation: distilled images and, beside them, the baselines of the same size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import ImageDataset, Normalization
from ..errors import ConfigError, nearest
from ..runtime.rng import derive_seed, generator
from ..scoring.difficulty import Difficulty
from .network import EvaluationRecipe
from .results import digest

BASELINES = ("random", "easiest", "kmeans", "full")

RANDOM, EASIEST, KMEANS, FULL = "random real", "easiest real", "k-means centres", "full data"
RANDOM_SOFT = f"{RANDOM}, soft labels"


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """A row of the table before it is trained.

    Attributes:
        name: of the row.
        purpose: names the random streams of its networks (:class:`pad_fast.evaluation.network.Network`).
        recipe: how networks are trained on it.
        digest: tells it from every other set.
        normalization: of its images, and of those that its networks are tested on.
        take: images `[N, C, H, W]` and targets for the network with this index.
        teacher: the full set in this normalisation, where a network trained on it labels the images.
    """

    name: str
    purpose: str
    recipe: EvaluationRecipe
    digest: str
    normalization: Normalization
    take: Callable[[int], tuple[Tensor, Tensor]]
    teacher: TrainingSet | None = None


def baseline_names(baselines: bool | Sequence[str]) -> tuple[str, ...]:
    """`baselines=` as names of :data:`BASELINES`, in their order.

    Raises:
        ConfigError: an unknown name.
    """
    if isinstance(baselines, bool):
        return BASELINES if baselines else ()
    wanted = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    for name in wanted:
        if name not in BASELINES:
            raise ConfigError(
                f"unknown baseline {name!r}; use any of {', '.join(BASELINES)}.{nearest(name, BASELINES)}"
            )
    return tuple(name for name in BASELINES if name in wanted)


class RealBaselines:
    """The baselines: subsets and summaries of the training set, normalised like the distilled images.

    Args:
        data: the real data; `normalization` of its images, which are brought to `device` when they are needed.
        counts: images per class of the distilled set; a class that has fewer real ones gives all of them.

    Attributes:
        notes: a sentence about each of these classes.
    """

    def __init__(
        self,
        data: ImageDataset,
        normalization: Normalization,
        device: torch.device,
        counts: Sequence[int],
        seed: int,
    ) -> None:
        self.data, self.normalization, self.device = data, normalization, device
        real = torch.bincount(data.train_labels, minlength=data.classes).tolist()
        self.counts, self.seed = tuple(map(min, counts, real)), seed
        self.notes = [
            f"class {label} ({data.class_names[label]}) has {size} real images and {count} distilled ones: baselines "
            "of the distilled size take all of them"
            for label, (count, size) in enumerate(zip(counts, real, strict=False))
            if count > size
        ]

    @functools.cached_property
    def images(self) -> Tensor:
        """Normalised training images `[N, C, H, W]`."""
        return self.normalization.apply(self.data.train_images).to(self.device)

    @functools.cached_property
    def labels(self) -> Tensor:
        """Their classes `[N]`."""
        return self.data.train_labels.to(self.device)

    @functools.cached_property
    def origin(self) -> str:
        """Names data and normalisation."""
        state = self.normalization.state()
        return f"{self.data.fingerprint} {digest(*(state[name] for name in sorted(state)))}"

    def random(self, recipe: EvaluationRecipe, *, teacher: Tensor | None = None) -> TrainingSet:
        """Another draw for each network; soft labels where a teacher's logits `[N, classes]` are given."""

        def take(index: int) -> tuple[Tensor, Tensor]:
            rows = self._random_rows(index).to(self.device)
            return self.images[rows], (self.labels if teacher is None else teacher)[rows]

        if teacher is None:
            return self._set(RANDOM, RANDOM, recipe, take)
        return self._set(RANDOM_SOFT, RANDOM, recipe, take, digest(teacher))

    def easiest(self, recipe: EvaluationRecipe, difficulty: Difficulty) -> TrainingSet:
        """The images of each class with the lowest EL2N score, ties by index."""
        rows = torch.cat([order[:count] for order, count in zip(difficulty.order, self.counts, strict=True)])

        def take(index: int) -> tuple[Tensor, Tensor]:
            here = rows.to(self.device)
            return self.images[here], self.labels[here]

        return self._set(EASIEST, EASIEST, recipe, take, ",".join(map(str, rows.tolist())))

    def kmeans(self, recipe: EvaluationRecipe) -> TrainingSet:
        """The centres of k-means (Lloyd 1982, k-means++ seeds) in each class's normalised images, k = its count."""

        @functools.cache
        def centres() -> tuple[Tensor, Tensor]:
            # Found only when a network needs them; the rows of a cached table do not.
            from sklearn.cluster import KMeans

            found = []
            for label, count in enumerate(self.counts):
                if count:
                    rows = self.data.images_of_class(label).to(self.device)
                    state = derive_seed(self.seed, KMEANS, label) % 2**32
                    means = KMeans(count, n_init=1, random_state=state).fit(self.images[rows].flatten(1).cpu().numpy())
                    found.append(torch.from_numpy(means.cluster_centers_))
            images = torch.cat(found).to(self.images).view(-1, *self.images.shape[1:])
            labels = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
            return images, labels.to(self.device)

        return self._set(KMEANS, KMEANS, recipe, lambda index: centres())

    def full(self, recipe: EvaluationRecipe) -> TrainingSet:
        """All training images."""
        return self._set(FULL, FULL, recipe, lambda index: (self.images, self.labels))

    def _random_rows(self, index: int) -> Tensor:
        """As many random training images of each class as the distilled set has."""
        picked = []
        for label, count in enumerate(self.counts):
            rows = self.data.images_of_class(label)
            draws = generator(self.seed, RANDOM, label, index)
            picked.append(rows[torch.randperm(len(rows), generator=draws)[:count]])
        return torch.cat(picked)

    def _set(
        self,
        name: str,
        purpose: str,
        recipe: EvaluationRecipe,
        take: Callable[[int], tuple[Tensor, Tensor]],
        chosen: str = "",
    ) -> TrainingSet:
        identity = f"{name} of {self.origin} {self.counts if name != FULL else ''} {chosen}"
        return TrainingSet(name, purpose, recipe, identity, self.normalization, take)
