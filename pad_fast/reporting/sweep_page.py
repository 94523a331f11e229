"""The table and charts of a finished grid of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from markupsafe import Markup

from ..evaluation.table import mean_std, mean_text
from ..settings.choices import PRUNES
from .html.charts import Line, line_chart
from .html.page import hint, page, section, table

NONE = ("none", 0.0)
Setting = tuple[str, float]
"""A kind and its ratio, such as ("hardest", 0.2) or ("depth", 0.25); ("none", 0.0)."""

_COLOURS = 8


@dataclass(frozen=True)
class SweepResult:
    """Accuracies of a finished grid.

    Attributes:
        method, dataset, ipc: what was run.
        accuracies: percent, one number for each network of each seed, per prune and mask setting.
    """

    method: str
    dataset: str
    ipc: int
    accuracies: Mapping[tuple[Setting, Setting], tuple[float, ...]]

    def table(self) -> str:
        """Rows are what was pruned, columns what was masked: mean and standard deviation over seeds and networks."""
        header, *rows = ["| " + " | ".join(cells) + " |" for cells in self._cells()]
        return "\n".join([header, "|---" * (len(self.axes()[1]) + 1) + "|", *rows])

    def axes(self) -> tuple[list[Setting], list[Setting]]:
        """Pruning settings and mask settings, in the order asked for."""
        return list(dict.fromkeys(p for p, _ in self.accuracies)), list(dict.fromkeys(m for _, m in self.accuracies))

    def page(self) -> str:
        """The charts and the table as one HTML page."""
        prunes, masks = self.axes()
        sections = []
        for heading, x_label, kinds, flip in (
            ("What pruning does (FIEx)", "fraction of every class left out", PRUNES, False),
            ("What masking does (FIEm)", "fraction of the depth left out", ("depth", "loss"), True),
            ("What masking layers does (FIEm)", "layers left out", ("layers",), True),
        ):
            lines = self._lines(kinds, flip)
            if any(len(line.x) > 1 for line in lines):
                chart = line_chart(
                    lines,
                    x_label=x_label,
                    y_label="test accuracy, %",
                    description=f"{heading}: test accuracy against the {x_label}",
                    whole=kinds == ("layers",),
                )
                sections.append(section(heading, chart))
        networks = sorted({len(values) for values in self.accuracies.values()})
        header, *rows = self._cells()
        note = hint(f"Mean ± standard deviation over {' or '.join(map(str, networks))} networks." * (networks != [1]))
        sections.append(section("Every cell", table(header, rows) + note))
        return page(f"{self.method.upper()} on {self.dataset}, {self.ipc} per class", Markup(), sections)

    def _cells(self) -> list[list[str]]:
        """The table's header and then its rows."""
        prunes, masks = self.axes()
        rows = [["pruned \\ masked", *(" ".join(words(mask)) for mask in masks)]]
        for prune in prunes:
            cells = [mean_text(self.accuracies[prune, mask], sign="±") for mask in masks]
            rows.append([" ".join(words(prune)), *cells])
        return rows

    def _lines(self, kinds: Sequence[str], flip: bool) -> list[Line]:
        """A curve over the ratios of each of these kinds, for every setting on the other axis."""
        own, others = reversed(self.axes()) if flip else self.axes()
        lines: list[Line] = []
        for kind, other in product([kind for kind in kinds if kind in {k for k, _ in own}], others):
            points = sorted((ratio, (k, ratio)) for k, ratio in own if k == kind)
            # Leaving out nothing is no mask, except to DM, whose criterion then sums over all blocks.
            if NONE in own and points[0][0] > 0 and not (flip and self.method == "dm"):
                points.insert(0, (0.0, NONE))
            values = [self.accuracies[(other, at) if flip else (at, other)] for _, at in points]
            found = [mean_std(each) for each in values]
            label = f"{kind}, {'pruned' if flip else 'masked'}: {' '.join(words(other))}"
            style = f"series c{len(lines) % _COLOURS}"
            lines.append(Line([x for x, _ in points], [m for m, _ in found], label, style, [s for _, s in found]))
        return lines


def words(setting: Setting) -> tuple[str, ...]:
    """A setting as a table says it: ("hardest", "0.2"), or ("none",)."""
    return (setting[0],) if setting == NONE else (setting[0], f"{setting[1]:g}")
