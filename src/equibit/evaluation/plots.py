"""Plots as inline SVG: coloured by style sheet, so that one file reads well in light and dark.

Elements carry classes only: ``series-<name>`` for a series, ``grid``, ``axis`` and ``tick`` for the
rest. Every figure scales with the page and names itself for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import numpy.typing as npt

from equibit.structures.structure import FloatArray

DENSITY_LEVELS = 6
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """One axis of a figure.

    Attributes:
        low, high: ends, in the unit of the data.
        label: what is drawn beside it.
        log: logarithmic; ends must be positive.
    """

    low: float
    high: float
    label: str = ""
    log: bool = False

    def fraction(self, values: npt.ArrayLike) -> FloatArray:
        """Where values lie between the ends, 0 to 1 inside."""
        x = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            x, low, high = np.log10(x), math.log10(low), math.log10(high)
        return np.asarray((x - low) / (high - low), dtype=np.float64)

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """Round numbers within the ends and how they are written."""
        if self.log:
            first, last = (
                math.ceil(math.log10(self.low) - 1e-9),
                math.floor(math.log10(self.high) + 1e-9),
            )
            stride = max(1, math.ceil((last - first + 1) / (count + 2)))
            return [(10.0**e, power_of_ten(e)) for e in range(first, last + 1, stride)]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        fitting = [m * power for m in (0.2, 0.5, 1, 2, 5, 10) if m * power <= 2.5 * rough]
        step = next(
            (s for s in fitting if s >= rough * (1 - 1e-9) and self._multiples(s) > 2), fitting[-2]
        )
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            (k * step, f"{k * step:.{digits}f}".replace("-", "−")) for k in range(first, last + 1)
        ]

    def _multiples(self, step: float) -> int:
        return math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1


def power_of_ten(exponent: int) -> str:
    """10ⁿ as text, small powers written out."""
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


@dataclass
class Figure:
    """A set of axes that fills up with marks and then becomes SVG.

    Attributes:
        x, y: axes.
        title: for screen readers.
        width, height: in CSS pixels before scaling.
    """

    x: Axis
    y: Axis
    title: str
    width: int = 560
    height: int = 330
    marks: list[str] = field(default_factory=list)

    left: int = 72
    right: int = 14
    top: int = 12
    bottom: int = 46

    def steps(
        self, edges: npt.ArrayLike, heights: npt.ArrayLike, series: str, *, filled: bool = False
    ) -> None:
        """Outline of a histogram from its first to its last occupied bin, and its area if filled."""
        occupied = np.flatnonzero(heights)
        if not occupied.size:
            return
        first, last = occupied[0], occupied[-1] + 1
        xs = self._px(np.repeat(np.asarray(edges, dtype=np.float64)[first : last + 1], 2))
        inner = np.repeat(np.asarray(heights, dtype=np.float64)[first:last], 2)
        ys = self._py(np.concatenate([[self.y.low], inner, [self.y.low]]))
        outline = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
        if filled:
            self.marks.append(f'<polygon class="area series-{series}" points="{outline}"/>')
        self.marks.append(f'<polyline class="outline series-{series}" points="{outline}"/>')

    def points(
        self, x: npt.ArrayLike, y: npt.ArrayLike, series: str, *, radius: float = 2.2
    ) -> None:
        """A scatter of circles."""
        circles = "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>'
            for a, b in zip(self._px(x), self._py(y), strict=True)
        )
        self.marks.append(f'<g class="points series-{series}">{circles}</g>')

    def density(
        self, x: npt.ArrayLike, y: npt.ArrayLike, series: str, *, cell: float = 4.0
    ) -> None:
        """How many points fall into each small square; darker is more, on a logarithmic scale."""
        plot_width, plot_height = self._plot_size()
        columns, rows = max(1, round(plot_width / cell)), max(1, round(plot_height / cell))
        counts, _, _ = np.histogram2d(
            self.x.fraction(x), self.y.fraction(y), bins=(columns, rows), range=((0, 1), (0, 1))
        )
        if counts.max() == 0:
            return
        shade = np.log1p(counts) / np.log1p(counts.max())
        levels = np.where(counts > 0, np.ceil(shade * DENSITY_LEVELS), 0).astype(int)
        w, h = plot_width / columns, plot_height / rows
        for level in range(1, DENSITY_LEVELS + 1):
            cells = np.argwhere(levels == level)
            path = "".join(
                f"M{self.left + a * w:.1f} {self.top + plot_height - (b + 1) * h:.1f}"
                f"h{w:.1f}v{h:.1f}h-{w:.1f}z"
                for a, b in cells
            )
            if path:
                self.marks.append(
                    f'<path class="density series-{series}" '
                    f'fill-opacity="{0.12 + 0.88 * level / DENSITY_LEVELS:.2f}" d="{path}"/>'
                )

    def line(self, x: npt.ArrayLike, y: npt.ArrayLike, css_class: str) -> None:
        """A line through points."""
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(self._px(x), self._py(y), strict=True))
        self.marks.append(f'<polyline class="{css_class}" points="{points}"/>')

    def marker(self, x: float, series: str) -> None:
        """A vertical line over the full height, for a median."""
        position = self._px([x])[0]
        self.marks.append(
            f'<line class="marker series-{series}" x1="{position:.1f}" x2="{position:.1f}" '
            f'y1="{self.top}" y2="{self.height - self.bottom}"/>'
        )

    def svg(self) -> str:
        return (
            f'<svg class="figure" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}">'
            f"{self._frame()}{''.join(self.marks)}</svg>"
        )

    def _plot_size(self) -> tuple[float, float]:
        return self.width - self.left - self.right, self.height - self.top - self.bottom

    def _px(self, values: npt.ArrayLike) -> FloatArray:
        return self.left + self.x.fraction(values) * self._plot_size()[0]

    def _py(self, values: npt.ArrayLike) -> FloatArray:
        return self.height - self.bottom - self.y.fraction(values) * self._plot_size()[1]

    def _frame(self) -> str:
        floor, end = self.height - self.bottom, self.width - self.right
        parts = []
        for value, text in self.x.ticks(max(3, self.width // 90)):
            x = self._px([value])[0]
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{floor}"/>'
                f'<text class="tick" x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{text}</text>'
            )
        for value, text in self.y.ticks(max(3, round(self._plot_size()[1] / 50))):
            y = self._py([value])[0]
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{self.left - 8}" y="{y + 4:.1f}" '
                f'text-anchor="end">{text}</text>'
            )
        middle_x, middle_y = (self.left + end) / 2, (self.top + floor) / 2
        parts.append(
            f'<line class="axis" x1="{self.left}" x2="{end}" y1="{floor}" y2="{floor}"/>'
            f'<text class="label" x="{middle_x:.0f}" y="{self.height - 8}" '
            f'text-anchor="middle">{escape(self.x.label)}</text>'
            f'<text class="label" transform="translate(14 {middle_y:.0f}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.label)}</text>'
        )
        return "".join(parts)


@dataclass(frozen=True)
class Bar:
    """One bar: which series, how long, what is written at its end, and optionally a longer ghost."""

    series: str
    value: float
    text: str
    ghost: float | None = None


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str, width: int = 560) -> str:
    """Horizontal bars in labelled groups, all on one linear scale from zero."""
    thickness, gap, group_gap, left, right = 15, 4, 14, 176, 128
    longest = max(max(bar.value, bar.ghost or 0.0) for _, bars in groups for bar in bars) or 1.0
    scale = (width - left - right) / longest
    parts: list[str] = []
    y = 6.0
    for label, bars in groups:
        middle = y + (len(bars) * (thickness + gap) - gap) / 2
        parts.append(
            f'<text class="label" x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{escape(_shorten(label, 19))}<title>{escape(label)}</title></text>"
        )
        for bar in bars:
            length = max(bar.value * scale, 1.5)
            end = length
            if bar.ghost is not None:
                end = max(length, bar.ghost * scale)
                parts.append(
                    f'<rect class="ghost" x="{left}" y="{y:.1f}" width="{bar.ghost * scale:.1f}" '
                    f'height="{thickness}" rx="2"/>'
                )
            parts.append(
                f'<rect class="bar series-{bar.series}" x="{left}" y="{y:.1f}" '
                f'width="{length:.1f}" height="{thickness}" rx="2"/>'
                f'<text class="tick" x="{left + end + 6:.1f}" y="{y + thickness - 3:.1f}">'
                f"{escape(bar.text)}</text>"
            )
            y += thickness + gap
        y += group_gap - gap
    height = math.ceil(y - group_gap + gap + 6)
    return (
        f'<svg class="figure" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def sparkbars(values: npt.ArrayLike, *, title: str, series: str, width: int = 240) -> str:
    """A histogram without axes, for many small ones side by side."""
    counts = np.asarray(values, dtype=np.float64)
    height, base = 70, 66
    step = width / counts.size
    peak = counts.max() or 1.0
    path = "".join(
        f"M{k * step:.2f} {base}v-{max(1.0, n / peak * (base - 4)):.2f}"
        f"h{max(step - (0.8 if step > 3 else 0), 0.4):.2f}V{base}z"
        for k, n in enumerate(counts)
        if n > 0
    )
    return (
        f'<svg class="figure" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<path class="bar series-{series}" d="{path}"/>'
        f'<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/></svg>'
    )


def padded(*arrays: npt.ArrayLike, fraction: float = 0.04) -> tuple[float, float]:
    """Ends of an axis that hold all values with a margin."""
    values = np.concatenate([np.ravel(a) for a in arrays])
    low, high = float(values.min()), float(values.max())
    margin = fraction * (high - low) or max(1e-9, 0.05 * abs(low))
    return low - margin, high + margin


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else "…" + text[-(limit - 1) :]
