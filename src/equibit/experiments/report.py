"""What an experiment found, beside what the papers say, as JSON, Markdown and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equibit.evaluation.record import Record
from equibit.evaluation.summary import number
from equibit.storage.atomic import atomic_path, atomic_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_RUN = "not run"
PAGE = Path("docs/reproduction.md")

Verdict = Literal["surpassed", "confirmed", "not confirmed", "not run"]


@dataclass(frozen=True)
class Claim(Record):
    """One statement of the papers and what was found here.

    Attributes:
        text: the statement, in our words.
        source: where it stands, e.g. ``P1 IV.B``; P1 is the INT8 paper, P2 the GAQ paper.
        published: their figure.
        measured: ours, or ``not run``.
        verdict: in a plain word.
        why: what explains it, and what the comparison leaves open.
    """

    text: str
    source: str
    published: str
    measured: str
    verdict: Verdict
    why: str = ""


def judged_at_most(measured: float | None, published: float) -> Verdict:
    """Of an error: surpassed below the published figure, confirmed up to 2 % above it."""
    if measured is None:
        return "not run"
    if measured < published:
        return "surpassed"
    return "confirmed" if measured <= 1.02 * published else "not confirmed"


@dataclass(frozen=True)
class Table(Record):
    """Attributes:
    title: of the table.
    columns: headers; the first names the rows.
    rows: one text per column; ``not run`` where there is no figure.
    note: below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        parts = [f"**{self.title}**", markdown_table(self.columns, self.rows)]
        return "\n\n".join([*parts, self.note] if self.note else parts)


@dataclass(frozen=True)
class Report(Record):
    """Everything about one experiment that a reader needs.

    Attributes:
        name, title: of the experiment.
        quick: that it was the quick form: a smoke test, no evidence.
        protocol: what was run, in a sentence or two.
        command: that makes it.
        seeds: asked for.
        missing: stages that are not done.
        tables: figures measured here.
        claims: of the papers.
        data: the numbers behind the tables.
        seconds: wall time of the finished stages.
        places: machines, commits, threads, versions and dates of the measurements, each once.
        draw: draws the picture, or None.
    """

    name: str
    title: str
    quick: bool
    protocol: str
    command: str
    seeds: tuple[int, ...]
    missing: tuple[str, ...]
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    data: Mapping[str, Any]
    seconds: float
    places: Mapping[str, Any]
    draw: Callable[[Figure], None] | None = field(
        default=None, repr=False, metadata={"json": False}
    )

    def markdown(self) -> str:
        """The report as a section of a page."""
        form = "quick form" if self.quick else "full protocol"
        parts = [f"### {self.title} ({form})"]
        if self.quick:
            parts.append("**Quick run: it shows that everything works and is no evidence.**")
        parts.append(self.protocol)
        if self.missing:
            names = dict.fromkeys(stage.rpartition(" ")[2] for stage in self.missing)
            parts.append(f"Not run ({len(self.missing)} stages): {', '.join(names)}.")
        parts += [table.markdown() for table in self.tables]
        if self.claims:
            parts += ["**The papers' claims**", claims_table(self.claims)]
        parts.append(self._origin())
        return "\n\n".join(parts) + "\n"

    def _origin(self) -> str:
        if not self.places:
            return "Nothing was run yet."
        parts = [f"{name} {', '.join(map(str, given))}" for name, given in self.places.items()]
        return (
            f"Made by `{self.command}`; seeds {', '.join(map(str, self.seeds))}; "
            f"{number(self.seconds / 60, 2)} minutes of wall time; {'; '.join(parts)}."
        )


def places_of(provenances: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What the records of several measurements say about where they were made, each once."""
    found: dict[str, set[Any]] = {}
    for place in provenances:
        named = {
            "CPU": place.get("cpu"),
            "GPU": place.get("gpu"),
            "threads": place.get("threads"),
            "commit": place.get("commit"),
            "date": str(place.get("date", ""))[:10] or None,
            "torch": place.get("versions", {}).get("torch"),
        }
        for key, value in named.items():
            if value is not None:
                found.setdefault(key, set()).add(value)
    return {key: sorted(values) for key, values in found.items()}


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Numbers to the right, the first column to the left."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def claims_table(claims: Iterable[Claim]) -> str:
    """The papers' figures and ours in columns of their own."""
    lines = [
        f"| {c.text} | {c.source} | {c.published} | {c.measured} | {c.verdict} | {c.why} |"
        for c in claims
    ]
    head = "| claim | where | published | measured here | verdict | why |"
    return "\n".join([head, "| --- | --- | ---: | ---: | --- | --- |", *lines])


def write_report(report: Report, base: Path, *, page: Path | None = PAGE) -> list[Path]:
    """Write ``BASE.json``, ``BASE.md`` and ``BASE.png``, and fill the report's place on a page.

    The place is ``<!-- NAME -->`` to ``<!-- /NAME -->``, or ``NAME quick`` for the quick form.

    Returns:
        The files written; a picture only where there is something to draw and matplotlib.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    text = report.markdown()
    texts = {
        base.with_name(f"{base.name}.json"): json.dumps(
            report.to_json(), indent=1, ensure_ascii=False, allow_nan=False
        )
        + "\n",
        base.with_name(f"{base.name}.md"): text,
    }
    if page is not None and page.is_file():
        old = page.read_text(encoding="utf-8")
        new = filled(old, f"{report.name} quick" if report.quick else report.name, text)
        if new != old:
            texts[page] = new
    for path, content in texts.items():
        with atomic_text(path) as file:
            file.write(content)
    written = list(texts)
    if report.draw is not None:
        written += _drawn(report.draw, base.with_name(f"{base.name}.png"))
    return written


def _drawn(draw: Callable[[Figure], None], path: Path) -> list[Path]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    figure = Figure(layout="constrained", dpi=150)
    draw(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return [path]


def filled(document: str, marker: str, text: str) -> str:
    """``document`` with what stands between a pair of marker comments replaced; without, as it is.

    The opening comment may say more after the marker and a colon: ``<!-- MARKER: … -->``.
    """
    start = max(document.find(f"<!-- {marker} -->"), document.find(f"<!-- {marker}:"))
    start = document.find("-->\n", start) if start >= 0 else -1
    end = document.find(f"<!-- /{marker} -->", start) if start >= 0 else -1
    if end < 0:
        return document
    return f"{document[: start + 4]}\n{text}\n{document[end:]}"
