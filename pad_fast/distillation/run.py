"""The distillation loop: match trajectories, update images, soft labels and the student's learning rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DistillationStopped, RankLost
from ..runtime import distributed
from ..runtime.progress import Progress
from .back_off import BackOff, Fault
from .iterations import Iterations
from .metrics import METRICS, MetricsLog
from .rate_search import find_rate, has_gradient, is_due, prepare
from .skipping import PATIENCE, require_update
from .state import CHECKPOINT, State


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
        DistillationStopped: see :meth:`Loop.iterate`, or the first iterations were all skipped; under `back_off`, after
            many back-offs. A checkpoint of the last good state is on disk.
        RankLost: another rank has ended; a checkpoint of the last complete iteration is on disk, if the main one lives.
        RankError: the ranks have come to different states, of which none is saved.
    """
    group, config = distributed.group(), loop.config
    checkpoint, back_off = folder / CHECKPOINT, BackOff(config, progress.say)
    prepare(state, config)
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
                try:
                    row = back_off.settled(state, loop.settle(state, begun.popleft()))
                except Fault as fault:
                    if not config.back_off:
                        raise
                    begun.clear()  # they have had no effect, and are begun again
                    row = back_off.fault(state, fault)
                log.append(row)
                if observe is not None:
                    observe(row)
                if not config.back_off:
                    require_update(state, config, history)

        def advance(count: int) -> None:
            """Begin iterations until so many are begun."""
            while state.iteration < count:
                begun.append(loop.begin(state))
                saves = state.iteration % config.checkpoint_every == 0
                judged = back_off.due(state)
                searching = is_due(state)
                # A state can only be judged or saved when nothing is under way.
                settle(0 if saves or judged or searching or state.iteration == PATIENCE else loop.late)
                if searching and has_gradient(state):
                    find_rate(loop, state, progress.say)
                if judged and back_off.due(state):
                    back_off.judge(state)
                if saves and state.iteration % config.checkpoint_every == 0:
                    state.require_same()
                    save()
                    if checkpointed is not None:
                        checkpointed(state)

        try:
            if not config.back_off:
                require_update(state, config, history)
            for count in pending:
                advance(count + 1)
            while begun:  # of which one may go wrong, and be followed by others
                settle(0)
                advance(config.iterations)
            state.require_same()
            require_update(state, config, history)
        except DistillationStopped as error:
            save()
            way_out = (
                ""
                if config.back_off
                else (", with other settings or with back_off=True (--back-off), which halves steps that are too large")
            )
            raise DistillationStopped(
                f"{error}. The last good state is in {checkpoint}; a run with other settings does not go on from it: "
                "begin anew with overwrite=True (--overwrite), which keeps scores and experts, or in another folder"
                f"{way_out}"
            ) from None
        except RankLost as error:
            if begun:  # on a GPU, these can no longer be waited for; the checkpoint on disk is an earlier one
                raise
            save()
            raise RankLost(f"{error}. {checkpoint} has the state after {state.iteration} iterations") from error
        save()
    summary = back_off.summary(state)
    if summary is not None:
        progress.say(summary)


def _detail(history: Sequence[Mapping[str, float]], state: State) -> str:
    if not history:
        return ""
    recent = [row["loss"] for row in history[-20:] if math.isfinite(row["loss"])]
    loss = sum(recent) / len(recent) if recent else math.nan
    rate = f", lr {history[-1]['lr']:.4g}" if "lr" in history[-1] else ""
    return f"loss {loss:.4g}{rate}" + (f", skipped {state.skipped}" if state.skipped else "")
