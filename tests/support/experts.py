"""Small expert stores with known weights."""

from __future__ import annotations

from pathlib import Path

import torch

from pad_fast import ExpertStore

P, EPOCHS = 11, 3
METADATA = {"model": "ConvNetD1W8", "fingerprint": "abc", "curriculum": {"initial_ratio": 0.75}, "seed": 0}


def expert(number: int) -> torch.Tensor:
    return torch.randn(EPOCHS + 1, P, generator=torch.Generator().manual_seed(number))


def make(folder, experts: int = 3, *, kept=None, storage: str = "float32", **changed) -> ExpertStore:
    store = ExpertStore.create(
        folder, parameter_count=P, epochs=EPOCHS, kept=kept, storage=storage, metadata={**METADATA, **changed}
    )
    for number in range(len(store), experts):
        assert store.append(expert(number)[list(store.kept)], {"loss": number / 4}) == number
    return store


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def written_buffer(folder, store, **arguments):
    folder.mkdir(exist_ok=True)
    return store.write_replay_buffer(folder / "replay_buffer_0.pt", [torch.Size([2, 5]), torch.Size([1])], **arguments)


def trained_on_a_cpu(path: Path, *, copied: bool, size: int = P) -> Path:
    """A replay buffer as published programs write it, whose `.cpu()` copies nothing on a CPU."""
    weights = torch.nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    snapshots = []
    for _ in range(EPOCHS + 1):
        kept = weights.detach().cpu()
        snapshots.append([kept.clone() if copied else kept])
        weights.data.add_(0.1)
    torch.save([snapshots], path)
    return path
