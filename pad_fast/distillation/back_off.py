"""Going on where a run would stop: back to its last good state, with half the step of what blew up (`back_off`).

Everything here is decided by the host from settled iterations: by a fault at once, by a window of losses when nothing
is under way. So it does not matter how late results are looked at, nor which of several ranks looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median

from torch import Tensor

from ..errors import DistillationStopped
from ..settings.config import Config
from .state import State

WINDOW = 10
"""Iterations that a state is judged by."""
IDLE = 2
"""Windows that lead nowhere before a run backs off; one, as long as there was no other after it did."""
MOST = 60
"""Back-offs of a run, after which it stops."""

LIMITS = {"images": 0.3, "labels": 0.5, "lr": 0.5}
"""How far a step may go, relative to the size of what it changes."""
RATES = {"images": "lr_img", "lr": "lr_lr", "labels": "lr_y"}
"""The step size of every learned tensor."""

NEAR = 1.0
"""The matching loss of a student that ends as far from the target as it started."""

_ALIKE = 1.25  # a window's median, relative to the best, that makes its first state a good one
_WORSE = 3.0  # and one that makes a run go back; start epochs alone make medians of sound runs differ by four
_FORGET = 1.02  # per window: start ranges that widen make the matching harder
_WORDS = {
    "lr_img": "the images' step (lr_img)",
    "lr_lr": "alpha's step (lr_lr)",
    "lr_y": "the labels' step (lr_y)",
    "alpha": "alpha, the student's learning rate,",
}


class Fault(DistillationStopped):
    """An iteration that went wrong and changed nothing.

    Attributes:
        blame: settings whose steps were too large, and how often they are to be halved to fit; empty where the state
            is at fault.
        row: of metrics.jsonl, for a run that goes on.
    """

    def __init__(self, complaint: str, row: Mapping[str, float], blame: Mapping[str, int] | None = None) -> None:
        super().__init__(complaint)
        self.row, self.blame = dict(row), dict(blame or {})


def movement(old: Tensor, new: Tensor) -> Tensor:
    """`[]` float64: how far a tensor has gone, relative to its size."""
    return (new - old).double().norm() / old.double().norm().clamp_min(1e-30)


def halvings(move: float, limit: float) -> int:
    """How often a step has to be halved before it goes no further than the limit; at least once.

    One that overflows has to be halved more than ten times, and again when it can be measured.

    Example:
        >>> halvings(0.4, 0.3), halvings(30.0, 0.3), halvings(float("inf"), 0.3)
        (1, 7, 10)
    """
    return max(1, math.ceil(math.log2(move / limit))) if math.isfinite(move) else 10


class BackOff:
    """The back-offs of a run.

    Args:
        say: tells the user a sentence.
    """

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say

    def due(self, state: State) -> bool:
        """Whether :meth:`judge` has to be called before the next iteration, with nothing under way."""
        return state.watch is not None and state.iteration % WINDOW == 0

    def fault(self, state: State, fault: Fault) -> dict[str, float]:
        """Take an iteration that went wrong for one without an update; its row.

        Raises:
            DistillationStopped: too often.
        """
        blame = fault.blame
        if not blame:
            blame = {self._moved_most(state) or "alpha": 1}
            self._return(state)
        self._make_smaller(state, blame, str(fault))
        state.iteration += 1
        if "skipped" in fault.row:
            state.skipped += 1
        return self.row(state, fault.row)

    def settled(self, state: State, row: Mapping[str, float]) -> dict[str, float]:
        """Take note of an iteration; its row."""
        if state.watch is not None:
            updated = not row.get("skipped")
            state.watch.losses.append(row["loss"])
            state.watch.updates += updated
            state.watch.moved |= updated
            state.watch.waited += not state.watch.moved
        return self.row(state, row)

    def row(self, state: State, row: Mapping[str, float]) -> dict[str, float]:
        """A row with what this run found, and how often it has backed off."""
        found = dict(row) | {name: value for name, value in state.found.items() if name != "threshold"}
        if state.watch is not None:
            found["back_offs"] = sum(state.watch.counts.values())
        return found

    def judge(self, state: State) -> None:
        """At the end of a window: keep what is good, leave what is not.

        Raises:
            DistillationStopped: it is not, too often.
        """
        watch = state.watch
        if watch is None or not watch.losses:
            return
        typical, limit = median(watch.losses), state.threshold(self.config)
        # A few updates on the way to nowhere are no sign of a sound start.
        if not watch.updates or (watch.best is None and limit is not None and typical > limit):
            watch.idle += 1
            if watch.idle >= (1 if watch.stalled else IDLE):
                self._stalled(state, typical)
            watch.losses, watch.updates = [], 0
            return
        watch.idle, watch.stalled = 0, False
        if watch.best is not None and typical > self._bad(watch.best, limit):
            moved = self._moved_most(state)
            self._return(state)
            if moved is not None:
                complaint = (
                    f"the matching loss is {typical:.3g}, and was {watch.best:.3g} in its best {WINDOW} iterations"
                )
                self._make_smaller(state, {moved: 1}, f"{complaint}, in iteration {state.iteration}")
            return
        if limit is None or typical <= limit:
            if watch.best is None or typical <= self._good(watch.best, limit):
                state.kept["good"] = state.kept["start"]
                watch.waited, watch.moved = 0, False
            watch.best = typical if watch.best is None else min(typical, _FORGET * watch.best)
        self._open(state)

    @staticmethod
    def _bad(best: float, limit: float | None) -> float:
        """Where a window's median is too high: for trajectories, not while students come nearer to their targets."""
        return max(_WORSE * best, 0.0 if limit is None else min(limit, NEAR))

    @staticmethod
    def _good(best: float, limit: float | None) -> float:
        """Where it is still low: for trajectories, half way (in its logarithm) between the best and no use at all."""
        return max(_ALIKE * best, 0.0 if limit is None else math.sqrt(best * min(limit, NEAR)))

    def summary(self, state: State) -> str | None:
        """A sentence for the end of the run."""
        counts = {} if state.watch is None else state.watch.counts
        if not counts:
            return None
        words = [f"{name} {count}" + self._now(state, name) for name, count in counts.items()]
        return f"distill: back-offs: {sum(counts.values())}, {', '.join(words)}"

    def _now(self, state: State, name: str) -> str:
        if name not in state.found:
            return ""
        given = getattr(self.config, name)
        return (
            f" (from {given if isinstance(given, str) or given is None else f'{given:g}'} to {state.found[name]:.3g})"
        )

    def _stalled(self, state: State, typical: float) -> None:
        """Nothing was updated for a while."""
        assert state.watch is not None
        # What was above the threshold before anything had moved is not the updates' fault.
        moved = None if state.watch.waited > WINDOW // 2 else self._moved_most(state)
        self._return(state)
        state.watch.stalled = True
        complaint = (
            f"the {WINDOW} iterations up to {state.iteration}, and others before, lead nowhere: the matching loss "
            f"(median {typical:.3g}) is above the threshold {state.threshold(self.config)}"
        )
        if moved is not None:
            self._make_smaller(state, {moved: 1}, complaint)
        elif typical > NEAR:  # the student ends further from the target than it started
            self._make_smaller(state, {"alpha": 1}, complaint)
        else:  # it approaches the target, which is all there is to ask of it
            self._make_smaller(state, {"threshold": 1}, complaint)

    def _moved_most(self, state: State) -> str | None:
        """The setting whose steps have taken its tensor furthest from the good state; None when nothing has moved."""
        good = state.kept["good"]
        moved = {
            "lr_img": float(movement(good["images"], state.images)),
            "lr_y": float(movement(good["label_logits"], state.label_logits)),
            "lr_lr": abs(math.log(float(state.lr) / float(good["lr"]))),
        }
        name = max(moved, key=lambda each: moved[each] if math.isfinite(moved[each]) else math.inf)
        return name if moved[name] != 0 else None

    def _return(self, state: State) -> None:
        assert state.watch is not None
        state.restore("good")
        state.watch.waited, state.watch.moved = 0, False
        self._open(state)

    def _open(self, state: State) -> None:
        """Begin a window."""
        assert state.watch is not None
        state.watch.losses, state.watch.updates, state.watch.idle = [], 0, 0
        state.keep("start")

    def _make_smaller(self, state: State, blame: Mapping[str, int], complaint: str) -> None:
        watch = state.watch
        assert watch is not None
        if sum(watch.counts.values()) >= MOST:
            raise DistillationStopped(
                f"{complaint}, and {MOST} back-offs ({self._counted(state)}) were no way out of it"
            )
        for name, times in blame.items():
            if name == "alpha":
                self._halve_alpha(state)
            elif name == "threshold":
                state.found[name] = NEAR
            else:
                state.found[name] = state.rate(name, self.config) / 2**times
            watch.counts[name] = watch.counts.get(name, 0) + 1
            if watch.counts[name] == 1:
                often = f" {times} times" if times > 1 else ""
                change = "the threshold is raised to 1" if name == "threshold" else f"{_WORDS[name]} is halved{often}"
                self.say(f"distill: {complaint}; {change}, and the run goes on (further ones like it are only counted)")

    def _halve_alpha(self, state: State) -> None:
        state.lr.mul_(0.5)
        state.momentum["lr"].zero_()
        state.keep("good")
        self._open(state)

    def _counted(self, state: State) -> str:
        assert state.watch is not None
        return ", ".join(f"{name} {count}" for name, count in state.watch.counts.items())
