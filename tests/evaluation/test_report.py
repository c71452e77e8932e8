"""The report: complete, self-contained, and seen by a real browser where one is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.toy import MorsePotential, labelled, molecule

from equibit.evaluation import Evaluation, evaluate
from equibit.evaluation.plots import Axis, Figure, bar_chart
from equibit.evaluation.report import render_report, write_report
from equibit.evaluation.size import CodeUse, PartSize, model_size
from equibit.evaluation.summary import number, ratio

pytest.importorskip("jinja2")

TRUTH = MorsePotential()
PARENT = MorsePotential(name="toy-fp32", depth=1.002, dtype="float32")
MODEL = MorsePotential(name="toy-w4a8", recipe="w4a8", depth=1.003, tilt=1e-4, step=5e-4)

FULL_PLOTS = 14  # symmetry 1, parity 2 × 2, distributions 2, elements 1, force size 1, size 1, latency 1, codes 3


@pytest.fixture(scope="module")
def full() -> Evaluation:
    parts = [
        PartSize("embedding", 32, 640, 2560, 2560),
        PartSize("layers.0.attention.query_and_a_very_long_name_indeed", 4, 4096, 2300, 16384),
    ]
    rng = np.random.default_rng(0)
    codes = [
        CodeUse.of(f"layer.{k}", "weight", 4, rng.integers(-8, 8, 500), signed=True)
        for k in range(3)
    ]
    return evaluate(
        MODEL,
        labelled(TRUTH, 60),
        parent=PARENT,
        floors={"FP64 parent": replace(PARENT, dtype="float64")},
        n_rotations=3,
        rotated_structures=20,
        batch_size=16,
        dataset="toy",
        split="1",
        subset="test",
        size=model_size(parts, file_bytes=9000),
        codes=codes,
    )


class _Checker(HTMLParser):
    """Counts figures and finds anything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.figures = 0
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "svg":
            self.figures += 1
        for key in ("src", "href", "srcset", "xlink:href"):
            target = values.get(key) or ""
            if target and not target.startswith(("data:", "#")):
                self.fetched.append(target)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "circle", "path", "polyline", "polygon")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(html: str) -> _Checker:
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def test_full_report_is_complete_and_self_contained(full: Evaluation) -> None:
    html = render_report(full)
    checker = _check(html)
    assert checker.figures == FULL_PLOTS
    assert checker.fetched == []
    assert not re.search(r"https?://|@import|url\(", html)
    assert "<script" not in html
    for text in ("toy-w4a8", "toy-fp32", "Local equivariance error", "FP64 parent", "meV/Å"):
        assert text in html
    assert number(full.model.errors.forces.mae) in html  # type: ignore[union-attr]
    assert number(full.equivariance.forces.median) in html  # type: ignore[union-attr]
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S).lower()


def test_bare_report_leaves_out_what_is_unknown() -> None:
    bare = evaluate(MODEL, [molecule()], n_rotations=0, time_calls=False, dataset="a <b> & c")
    html = render_report(bare)
    assert _check(html).figures == 0
    assert "a &lt;b&gt; &amp; c" in html
    assert "Symmetry" not in html


@pytest.mark.parametrize("count", [1, 2])
def test_few_structures_and_perfect_models_draw(count: int) -> None:
    result = evaluate(TRUTH, labelled(TRUTH, count), parent=TRUTH, n_rotations=1, time_calls=False)
    assert _check(render_report(result)).figures >= 7


def test_a_failed_write_leaves_the_old_report(full: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = replace(full, provenance=None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="None"):
        write_report(broken, path)
    assert path.read_text() == "old"
    write_report(full, path)
    assert path.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (15.88, "15.9"), (0.00213, "0.00213"), (1234.5, "1230"), (-2.5, "−2.50"),
        (1.2e-9, "1.20 × 10⁻⁹"), (None, "–"), (float("nan"), "–"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_ratios() -> None:
    assert ratio(1.03, 1.0) == "+3.0 %"
    assert ratio(0.9, 1.0) == "−10.0 %"
    assert ratio(30.0, 1.0) == "30×"
    assert ratio(1.0, 0.0) == "–"


@pytest.mark.parametrize(
    "axis",
    [Axis(-1.03, 2.7), Axis(0, 1e-9), Axis(-4209.1, -4208.2), Axis(1e-13, 1e3, log=True),
     Axis(0.03, 20, log=True)],
)  # fmt: skip
def test_ticks_are_few_inside_and_distinct(axis: Axis) -> None:
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(-1e-6 <= axis.fraction(value) <= 1 + 1e-6 for value, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_marks_lie_where_the_data_says() -> None:
    figure = Figure(Axis(0, 10), Axis(0, 100), "t", width=200, height=200, left=50, right=50,
                    top=50, bottom=50)  # fmt: skip
    figure.points([5], [100], "model")
    assert 'cx="100.0" cy="50.0"' in figure.marks[0]


def test_density_keeps_every_occupied_cell() -> None:
    figure = Figure(Axis(0, 1), Axis(0, 1), "t")
    figure.density([0.1, 0.1, 0.5, 0.9], [0.1, 0.1, 0.5, 0.2], "model")
    assert sum(mark.count("M") for mark in figure.marks) == 3


def test_bars_are_labelled_in_full() -> None:
    from equibit.evaluation.plots import Bar

    chart = bar_chart([("a" * 60, [Bar("model", 1.0, "1 B", ghost=2.0)])], title="t")
    assert "<title>" + "a" * 60 in chart


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

PROBE = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main *")].filter(e =>
    !e.closest(".table, .scroll, svg") && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0);
  const figures = [...document.querySelectorAll("svg.figure")].map(s => s.getBoundingClientRect());
  const outside = [...document.querySelectorAll("svg.figure")].flatMap(s => {
    const frame = s.getBoundingClientRect();
    return [...s.querySelectorAll("text")].filter(t => {
      const b = t.getBoundingClientRect();
      return b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1;
    }).map(t => t.textContent);
  });
  document.documentElement.dataset.probe = JSON.stringify({
    page: document.documentElement.scrollWidth, window: innerWidth,
    overflowing: wide.map(e => e.className || e.tagName), figures: figures.length,
    flat: figures.filter(r => r.width < 100 || r.height < 20).length,
    cut: outside,
  });
});
</script>
"""


def _browser(page: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-first-run", f"--user-data-dir={profile}", "--hide-scrollbars",
            "--enable-logging=stderr", "--v=0", *arguments, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it(full: Evaluation, tmp_path: Path, width: int) -> None:
    """All figures drawn, nothing wider than the page, no label cut off, no console message."""
    page = tmp_path / "probe.html"
    page.write_text(render_report(full).replace("</body>", PROBE + "</body>"))
    shown = _browser(page, tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    assert "CONSOLE" not in shown.stderr, shown.stderr
    found = re.search(r'data-probe="([^"]*)"', shown.stdout)
    assert found, shown.stdout[:300]
    probe = json.loads(found[1].replace("&quot;", '"'))
    assert probe["window"] == width
    assert probe["page"] <= probe["window"]
    assert probe["overflowing"] == []
    assert probe["cut"] == []
    assert probe["figures"] == FULL_PLOTS
    assert probe["flat"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH")
def test_both_colour_schemes_are_painted(full: Evaluation, tmp_path: Path) -> None:
    """The page is light or dark as the reader prefers, and the model's colour appears in both."""
    image = pytest.importorskip("PIL.Image")
    page = tmp_path / "report.html"
    write_report(full, page)
    for scheme, background, ink in ((1, (246, 247, 249), (0, 114, 178)), (0, (15, 19, 24), (86, 180, 233))):  # fmt: skip
        picture = tmp_path / f"{scheme}.png"
        _browser(
            page, tmp_path / f"profile{scheme}", "--window-size=900,1500",
            f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}",
        )  # fmt: skip
        pixels = np.asarray(image.open(picture).convert("RGB")).reshape(-1, 3)
        assert tuple(pixels[0]) == background
        assert (pixels == np.array(ink, dtype=np.uint8)).all(axis=1).sum() > 500
