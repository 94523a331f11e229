"""The distillation loop: match trajectories, update images, soft labels and the student's learning rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DistillationStopped, RankLost
from ..runtime import distributed
from ..runtime.progress import Progress
from ..settings.config import Config
from .iterations import Iterations
from .metrics import METRICS, MetricsLog
from .state import CHECKPOINT, State

PATIENCE = 50
"""A run whose first this many iterations are all skipped is stopped: nothing would ever be updated."""


def run(
    loop: Iterations,
    state: State,
    *,
    folder: Path,
    key: str,
    history: list[dict[str, float]],
    progress: Progress,
    observe: Callable[[Mapping[str, float]], None] | None = None,
    checkpointed: Callable[[State], None] | None = None,
) -> None:
    """Iterate to the end, appending `metrics.jsonl` and writing checkpoints into `folder`.

    Of several ranks, the main one alone has files. `observe` is called with every new row, `checkpointed` with the
    state at every checkpoint.

    Raises:
        DistillationStopped: see :meth:`Loop.iterate`, or the first iterations were all skipped; a checkpoint of the
            last good state is on disk.
        RankLost: another rank has ended; a checkpoint of the last complete iteration is on disk, if the main one lives.
        RankError: the ranks have come to different states, of which none is saved.
    """
    group, config = distributed.group(), loop.config
    checkpoint = folder / CHECKPOINT
    # Ranks on different machines may have started from numbers that differ in the last bits.
    group.broadcast_(*state.tensors().values())
    state.require_same()
    pending = progress.track(
        range(state.iteration, config.iterations),
        "distill",
        total=config.iterations,
        done=state.iteration,
        detail=lambda: _detail(history, state),
    )
    begun: deque[Any] = deque()
    with MetricsLog(folder / METRICS if group.main else None, history) as log:

        def save() -> None:
            if group.main:
                log.sync()
                state.save(checkpoint, key)

        def settle(left: int) -> None:
            while len(begun) > left:
                log.append(loop.settle(state, begun.popleft()))
                if observe is not None:
                    observe(history[-1])
                _require_progress(state, config, history)

        try:
            for _ in pending:
                begun.append(loop.begin(state))
                saves = state.iteration % config.checkpoint_every == 0
                # A state can only be judged or saved when nothing is under way.
                settle(0 if saves or state.iteration == PATIENCE else loop.late)
                if saves:
                    state.require_same()
                    save()
                    if checkpointed is not None:
                        checkpointed(state)
            settle(0)
            state.require_same()
        except DistillationStopped as error:
            save()
            raise DistillationStopped(
                f"{error}. The last good state is in {checkpoint}; a run with other settings does not go on from it: "
                "begin anew with overwrite=True (--overwrite), which keeps scores and experts, or in another folder"
            ) from None
        except RankLost as error:
            if begun:  # on a GPU, these can no longer be waited for; the checkpoint on disk is an earlier one
                raise
            save()
            raise RankLost(f"{error}. {checkpoint} has the state after {state.iteration} iterations") from error
        save()


def _require_progress(state: State, config: Config, history: Sequence[Mapping[str, float]]) -> None:
    if state.iteration == PATIENCE == state.skipped and config.threshold is not None:
        typical = sorted(row["loss"] for row in history)[len(history) // 2]
        raise DistillationStopped(
            f"all of the first {PATIENCE} iterations were skipped: the matching loss (median {typical:.3g}) is above "
            f"the threshold {config.threshold:g}, so nothing would ever be updated. The student moves away from the "
            f"experts, usually because its learning rate is too large: start it at the experts' (lr_init is "
            f"{config.lr_init:g}, lr_expert {config.lr_expert:g}), lower syn_steps ({config.syn_steps}), or raise "
            "threshold"
        )


def _detail(history: Sequence[Mapping[str, float]], state: State) -> str:
    if not history:
        return ""
    recent = history[-20:]
    loss = sum(row["loss"] for row in recent) / len(recent)
    rate = f", lr {history[-1]['lr']:.4g}" if "lr" in history[-1] else ""
    return f"loss {loss:.4g}{rate}" + (f", skipped {state.skipped}" if state.skipped else "")
