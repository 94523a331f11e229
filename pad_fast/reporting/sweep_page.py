"""The table and charts of a finished grid of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from markupsafe import Markup

from ..evaluation.table import AccuracyRow, mean_std, mean_text
from ..settings.choices import PRUNES
from .accuracy_section import accuracy_section
from .html.charts import Line, line_chart
from .html.page import absent, hint, page, section
from .html.render import part
from .names import data_name

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
        pages: where the pages of a setting's runs are, as seen from the sweep's folder, by seed.
        baselines: other sets that the same network was trained on, where the runs have any.
    """

    method: str
    dataset: str
    ipc: int
    accuracies: Mapping[tuple[Setting, Setting], tuple[float, ...]]
    pages: Mapping[tuple[Setting, Setting], Mapping[int, str]] = field(default_factory=dict)
    baselines: tuple[AccuracyRow, ...] = ()

    def table(self) -> str:
        """Rows are what was pruned, columns what was masked: mean and standard deviation over seeds and networks."""
        header, *rows = ["| " + " | ".join(cells) + " |" for cells in self._cells()]
        return "\n".join([header, "|---" * (len(self.axes()[1]) + 1) + "|", *rows])

    def axes(self) -> tuple[list[Setting], list[Setting]]:
        """Pruning settings and mask settings, in the order asked for."""
        return list(dict.fromkeys(p for p, _ in self.accuracies)), list(dict.fromkeys(m for _, m in self.accuracies))

    def page(self) -> str:
        """The charts and the table as one HTML page."""
        sections = [self._heat(), self._beside_baselines()]
        whole = self.accuracies.get((NONE, NONE))
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
                    limit=None if whole is None else mean_std(whole)[0],
                    limit_label="nothing left out",
                )
                sections.append(section(heading, chart))
        missing = []
        if not self.baselines:
            missing.append(
                "Baselines (random, easiest, k-means, the full set): not evaluated. The same command with "
                "--eval-baselines adds them; it trains them once for each seed, and repeats nothing else."
            )
        title = f"{self.method.upper()} on {data_name(self.dataset)}, {self.ipc} per class"
        return page(title, Markup(), [*sections, absent(missing)])

    def _heat(self) -> Markup:
        """The table of all cells, with links to the runs; the more colour, the better."""
        prunes, masks = self.axes()
        header, *texts = self._cells()
        means = {cell: mean_std(values)[0] for cell, values in self.accuracies.items()}
        low, high = min(means.values()), max(means.values())
        rows = []
        for prune, (name, *values) in zip(prunes, texts, strict=True):
            cells = []
            for mask, value in zip(masks, values, strict=True):
                share = 100 * (means[prune, mask] - low) / (high - low) if high > low else 0.0
                pages = self.pages.get((prune, mask), {})
                links = [part("link", f"seed {seed}" if len(pages) > 1 else "run", to) for seed, to in pages.items()]
                cells.append((f"{share:.0f}", value, links))
            rows.append((name, cells))
        networks = sorted({len(values) for values in self.accuracies.values()})
        words = "Test accuracy, %; the more colour, the better." if high > low else "Test accuracy, %."
        if networks[-1] > 1:
            words += f" Mean ± standard deviation over {' or '.join(map(str, networks))} networks."
        return section("Every cell", part("heat", header, rows) + hint(words), name="cells")

    def _beside_baselines(self) -> Markup:
        """The best cell, and the one that leaves nothing out, beside what else the network was trained on."""
        if not self.baselines:
            return Markup()
        best = max(self.accuracies, key=lambda cell: mean_std(self.accuracies[cell])[0])
        own = []
        for cell in dict.fromkeys([best, (NONE, NONE)]):
            if cell in self.accuracies:
                prune, mask = (" ".join(words(setting)) for setting in cell)
                label = f"{self.method.upper()}, pruned {prune}, masked {mask}" + " (best cell)" * (cell == best)
                own.append(AccuracyRow(label, self.baselines[0].model, self.accuracies[cell]))
        return accuracy_section([*own, *self.baselines], own, heading="Beside baselines", name="baselines")

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
