"""The ethanol results of several seeds as one table, beside the targets, as JSON and Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equibit.evaluation.record import Record
from equibit.evaluation.summary import number
from equibit.experiments.report import NOT_RUN, Claim, filled, markdown_table
from equibit.experiments.report import Table as ReportTable
from equibit.storage.atomic import atomic_text
from equibit.structures.errors import FileFormatError

FP32, CONTROL, NAIVE = "fp32", "control", "naive-w8a8"

UNITS = {
    "energy_mae": "meV",
    "energy_rmse": "meV",
    "forces_mae": "meV/Å",
    "forces_rmse": "meV/Å",
    "energy_to_parent": "meV",
    "forces_to_parent": "meV/Å",
    "lee_mean": "meV/Å",
    "lee_median": "meV/Å",
    "lee_maximum": "meV/Å",
    "lee_plain_mean": "meV/Å",
    "lee_plain_median": "meV/Å",
    "lee64_mean": "meV/Å",
    "lee64_maximum": "meV/Å",
    "net_force": "meV/Å",
    "net_torque": "meV",
    "file_bytes": "bytes",
}

METRICS: dict[str, tuple[str, ...]] = {
    "energy_mae": ("model", "errors", "energy", "mae"),
    "energy_rmse": ("model", "errors", "energy", "rmse"),
    "forces_mae": ("model", "errors", "forces", "mae"),
    "forces_rmse": ("model", "errors", "forces", "rmse"),
    "energy_to_parent": ("distance_to_parent", "energy", "mae"),
    "forces_to_parent": ("distance_to_parent", "forces", "mae"),
    "lee_mean": ("equivariance", "forces", "mean"),
    "lee_median": ("equivariance", "forces", "median"),
    "lee_maximum": ("equivariance", "forces", "maximum"),
    "lee_plain_mean": ("floors", "model, not oriented", "forces", "mean"),
    "lee_plain_median": ("floors", "model, not oriented", "forces", "median"),
    "lee64_mean": ("floors", "FP64 model", "forces", "mean"),
    "lee64_maximum": ("floors", "FP64 model", "forces", "maximum"),
    "net_force": ("model", "net", "force", "mean"),
    "net_torque": ("model", "net", "torque", "mean"),
    "quantized_ratio": ("size", "quantized_ratio"),
    "file_ratio": ("size", "file_ratio"),
    "file_bytes": ("size", "file_bytes"),
}

# Ratio: metric, whose value is divided by which variant's, or the other way round.
_AGAINST_CONTROL = {"energy_ratio": "energy_mae", "forces_ratio": "forces_mae"}
_BELOW_NAIVE = {"lee_below_naive": "lee_mean"}


@dataclass(frozen=True)
class Average(Record):
    """A metric over seeds.

    Attributes:
        mean: over seeds.
        spread: sample standard deviation over seeds; None for one seed.
        values: by seed.
    """

    mean: float
    spread: float | None
    values: Mapping[int, float]

    @classmethod
    def of(cls, values: Mapping[int, float]) -> Average | None:
        if not values:
            return None
        numbers = list(values.values())
        spread = statistics.stdev(numbers) if len(numbers) > 1 else None
        return cls(statistics.fmean(numbers), spread, dict(sorted(values.items())))

    def text(self, digits: int = 3) -> str:
        """The mean ± the spread, which is left out where the mean's last digit does not show it."""
        mean = number(self.mean, digits)
        if not self.spread or number(self.mean + self.spread, digits) == mean:
            return mean
        return f"{mean} ± {number(self.spread, 2)}"


@dataclass(frozen=True)
class Row(Record):
    """One variant on one kind of labels.

    Attributes:
        labels: ``rmd17`` or ``md17``.
        variant: ``fp32``, ``control`` or a recipe.
        seeds: that have been run.
        metrics: by name; None where it was not run or does not apply.
        settings_agree: whether all seeds were made with the same settings.
    """

    labels: str
    variant: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Average | None]
    settings_agree: bool


@dataclass(frozen=True)
class Target(Record):
    """A figure to reach.

    Attributes:
        text: in words.
        labels, variant, metric: of the cell it is about.
        limit: the figure; ``at_least`` says on which side of it to be.
        published: that the limit is another work's figure, quoted as published.
        measured: mean over seeds, or None.
    """

    text: str
    labels: str
    variant: str
    metric: str
    limit: float
    at_least: bool = False
    published: bool = False
    measured: float | None = None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "met": self.met}


TARGETS = (
    Target("FP32 energy MAE", "rmd17", FP32, "energy_mae", 1.0),
    Target("FP32 force MAE", "rmd17", FP32, "forces_mae", 4.2),
    Target("the record, MACE: energy MAE", "rmd17", FP32, "energy_mae", 0.4, published=True),
    Target("the record, MACE: force MAE", "rmd17", FP32, "forces_mae", 2.1, published=True),
    Target("So3krates: energy MAE", "md17", FP32, "energy_mae", 2.25, published=True),
    Target("So3krates: force MAE", "md17", FP32, "forces_mae", 4.16, published=True),
    Target("the papers' W4A8: energy MAE", "md17", "w4a8", "energy_mae", 1.74, published=True),
    Target("the papers' W4A8: force MAE", "md17", "w4a8", "forces_mae", 4.21, published=True),
    Target("w8a8 forces over control", "rmd17", "w8a8", "forces_ratio", 1.03),
    Target("w8a8 energy over control", "rmd17", "w8a8", "energy_ratio", 1.10),
    Target("w4a8 forces over control", "rmd17", "w4a8", "forces_ratio", 1.03),
    Target("w4a8 energy over control", "rmd17", "w4a8", "energy_ratio", 1.10),
    Target("w4a8 LEE in float32, median", "rmd17", "w4a8", "lee_median", 0.01),
    Target("w4a8 LEE in float32, mean", "rmd17", "w4a8", "lee_mean", 0.15),
    Target("naive LEE over w4a8's", "rmd17", "w4a8", "lee_below_naive", 30, at_least=True),
    Target("w4a8 LEE in float64, largest", "rmd17", "w4a8", "lee64_maximum", 1e-8),
    Target("w8a8 8-bit weights with steps", "rmd17", "w8a8", "weight_ratio", 3.9, at_least=True),
    Target("w4a8 4-bit weights with steps", "rmd17", "w4a8", "weight_ratio", 7.5, at_least=True),
    Target("w8a8 whole file", "rmd17", "w8a8", "file_ratio", 3.5, at_least=True),
    Target("w4a8 whole file", "rmd17", "w4a8", "file_ratio", 5.5, at_least=True),
)


@dataclass(frozen=True)
class Table(Record):
    """All rows, the targets, and where the figures come from.

    Attributes:
        rows: in the order of the page.
        targets: with what was measured.
        provenance: machines, threads, versions, dates and commands, each once.
        units: of the metrics that have one.
        spread: what ± means.
    """

    rows: tuple[Row, ...]
    targets: tuple[Target, ...]
    provenance: Mapping[str, Any]
    units: Mapping[str, str]
    spread: str = "sample standard deviation over seeds"

    def row(self, labels: str, variant: str) -> Row | None:
        return next((r for r in self.rows if (r.labels, r.variant) == (labels, variant)), None)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every result of a cell in a folder.

    Raises:
        FileFormatError: a file that is not such a result; the table itself is passed over.
    """
    results = []
    for path in sorted(folder.glob("*-seed[0-9]*.json")):
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            cell = plain["cell"]
            (cell["labels"], cell["variant"], cell["seed"], plain["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileFormatError(
                f"{path} is not a result of this experiment; remove it or make it again"
            ) from error
        results.append(plain)
    return results


def make_table(
    results: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    recipes: Sequence[str],
    *,
    command: str = "",
) -> Table:
    """The table of all results; rows that are asked for but were not run are in it too."""
    variants = list(dict.fromkeys([FP32, CONTROL, *recipes, *_recipes(results)]))
    kinds = list(dict.fromkeys([*labels, *(r["cell"]["labels"] for r in results)]))
    rows = tuple(
        _row([r for r in results if r["cell"]["labels"] == kind], kind, variant)
        for kind in kinds
        for variant in variants
    )
    found = Table(rows, (), {"command": command, **_provenance(results)}, UNITS)
    return Table(rows, tuple(_measured(found)), found.provenance, UNITS)


def _recipes(results: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({r["cell"]["variant"] for r in results})


def _row(results: Sequence[Mapping[str, Any]], labels: str, variant: str) -> Row:
    by_variant: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        cell = result["cell"]
        by_variant.setdefault(cell["variant"], {})[int(cell["seed"])] = result
    own = by_variant.get(variant, {})

    def over_seeds(value: Callable[[int], float | None]) -> Average | None:
        values = {seed: value(seed) for seed in own}
        return Average.of({seed: v for seed, v in values.items() if v is not None})

    metrics = {
        name: over_seeds(lambda seed, path=path: pick(own[seed], path))  # type: ignore[misc]
        for name, path in METRICS.items()
    }
    metrics["weight_ratio"] = over_seeds(lambda seed: _weight_ratio(own[seed]))

    def ratio(metric: str, other: str, inverse: bool) -> Average | None:
        def value(seed: int) -> float | None:
            mine = pick(own[seed], METRICS[metric])
            theirs = pick(by_variant.get(other, {}).get(seed), METRICS[metric])
            upper, lower = (theirs, mine) if inverse else (mine, theirs)
            return None if upper is None or not lower else upper / lower

        return None if variant in (other, FP32) else over_seeds(value)

    if variant in (FP32, CONTROL):
        metrics["file_ratio"] = None
    metrics |= {n: ratio(m, CONTROL, inverse=False) for n, m in _AGAINST_CONTROL.items()}
    metrics |= {n: ratio(m, NAIVE, inverse=True) for n, m in _BELOW_NAIVE.items()}
    settings = [json.dumps(r.get("settings"), sort_keys=True) for r in own.values()]
    return Row(labels, variant, tuple(sorted(own)), metrics, len(set(settings)) <= 1)


def _weight_ratio(result: Mapping[str, Any]) -> float | None:
    """Of the narrowest weights, those that the recipe is named for."""
    ratios = result["size"].get("weight_ratios") or {}
    return float(ratios[min(ratios, key=int)]) if ratios else None


def _cell_name(cell: Mapping[str, Any]) -> str:
    return f"{cell['labels']}-{cell['variant']}-seed{cell['seed']}"


def pick(tree: Any, path: Sequence[str]) -> float | None:
    """A number of an evaluation by the keys that lead to it, None where there is none."""
    for key in path:
        if not isinstance(tree, Mapping) or tree.get(key) is None:
            return None
        tree = tree[key]
    return float(tree)


def _measured(table: Table) -> Iterable[Target]:
    for target in TARGETS:
        row = table.row(target.labels, target.variant)
        cell = None if row is None else row.metrics[target.metric]
        measured = None if cell is None else cell.mean
        yield Target(
            target.text,
            target.labels,
            target.variant,
            target.metric,
            target.limit,
            target.at_least,
            target.published,
            measured,
        )


def _provenance(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    places = [result["provenance"] for result in results]

    def each(key: str) -> list[Any]:
        return sorted({place[key] for place in places})

    versions: dict[str, list[str]] = {}
    for place in places:
        for package, version in place["versions"].items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    return {
        "dates": sorted({place["date"][:10] for place in places}),
        "cpu": each("cpu"),
        "threads": each("threads"),
        "platform": each("platform"),
        "versions": versions,
        "commands": {_cell_name(r["cell"]): r["command"] for r in results},
    }


_COLUMNS: tuple[tuple[str, str], ...] = (
    ("energy MAE", "energy_mae"),
    ("energy RMSE", "energy_rmse"),
    ("force MAE", "forces_mae"),
    ("force RMSE", "forces_rmse"),
    ("energy over control", "energy_ratio"),
    ("forces over control", "forces_ratio"),
    ("energy to parent", "energy_to_parent"),
    ("forces to parent", "forces_to_parent"),
)
_SYMMETRY_COLUMNS: tuple[tuple[str, str], ...] = (
    ("LEE mean", "lee_mean"),
    ("LEE median", "lee_median"),
    ("LEE largest", "lee_maximum"),
    ("naive over this", "lee_below_naive"),
    ("LEE mean, not oriented", "lee_plain_mean"),
    ("LEE median, not oriented", "lee_plain_median"),
    ("LEE mean, float64", "lee64_mean"),
    ("LEE largest, float64", "lee64_maximum"),
    ("net force", "net_force"),
    ("net torque", "net_torque"),
)
_SIZE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("bytes", "file_bytes"),
    ("whole file", "file_ratio"),
    ("quantised layers", "quantized_ratio"),
    ("narrowest weights", "weight_ratio"),
)


def page(table: Table) -> str:
    """The whole table as Markdown; one section per kind of labels."""
    parts = []
    for labels in dict.fromkeys(row.labels for row in table.rows):
        parts.append(f"## Ethanol, {_label_words(labels)}")
        parts += [part.markdown() for part in _tables_of(table, labels)]
        odd = [row.variant for row in table.rows if row.labels == labels and not row.settings_agree]
        if odd:
            parts.append(f"Seeds of {', '.join(odd)} were made with different settings.")
    parts += ["## Targets", _targets(table), "## How these figures were made", _origin(table)]
    return "\n\n".join(parts) + "\n"


def report_tables(table: Table) -> list[ReportTable]:
    """The tables of the page, each with the labels it is about in its title."""
    return [
        replace(part, title=f"{_label_words(labels)}: {part.title}")
        for labels in dict.fromkeys(row.labels for row in table.rows)
        for part in _tables_of(table, labels)
    ]


def _tables_of(table: Table, labels: str) -> list[ReportTable]:
    rows = [row for row in table.rows if row.labels == labels]
    return [
        ReportTable(
            title,
            ("", "seeds", *(column for column, _ in columns)),
            tuple(tuple(line) for line in _lines(rows, columns)),
        )
        for title, columns in (
            ("Test errors (meV, meV/Å)", _COLUMNS),
            ("Symmetry and conservation (meV/Å; torque meV)", _SYMMETRY_COLUMNS),
            ("Size against FP32", _SIZE_COLUMNS),
        )
    ]


def target_claims(table: Table) -> list[Claim]:
    """The published figures among the targets."""
    return [
        Claim(
            f"{target.text}, {target.labels} labels",
            "as published",
            f"{target.limit:g}",
            NOT_RUN if target.measured is None else number(target.measured),
            "not run" if target.met is None else "surpassed" if target.met else "not confirmed",
        )
        for target in table.targets
        if target.published
    ]


def short_table(table: Table) -> str:
    """The rows of the README: rMD17 labels only."""
    rows = [row for row in table.rows if row.labels == "rmd17"]
    lines = []
    for row in rows:
        name = {FP32: "FP32", CONTROL: "FP32 control, same extra epochs"}.get(
            row.variant, f"`{row.variant}`"
        )
        lee = " / ".join(_text(row, metric) for metric in ("lee_mean", "lee_median"))
        smaller = _text(row, "file_ratio", digits=2)
        lines.append(
            [
                name,
                _text(row, "energy_mae"),
                _text(row, "forces_mae"),
                NOT_RUN if not row.seeds else lee,
                smaller if row.metrics["file_ratio"] is None else f"{smaller}× smaller",
            ]
        )
    seeds = sorted({seed for row in rows for seed in row.seeds})
    header = f"rMD17 ethanol, split 1, {len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    columns = [header, "energy MAE, meV", "force MAE, meV/Å", "LEE mean / median, meV/Å", "file"]
    return markdown_table(columns, lines) + "\n"


def _label_words(labels: str) -> str:
    return {
        "rmd17": "rMD17 labels, split 1: 950 + 50 training and validation, 1,000 test structures",
        "md17": "original MD17 labels (noisier than rMD17's; not to be compared with them)",
    }.get(labels, labels)


def _lines(rows: Iterable[Row], columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [
        [f"`{row.variant}`", str(len(row.seeds)), *(_text(row, metric) for _, metric in columns)]
        for row in rows
    ]


def _text(row: Row, metric: str, digits: int = 3) -> str:
    cell = row.metrics[metric]
    if cell is None:
        return "–" if row.seeds else NOT_RUN
    if metric == "file_bytes":
        return f"{cell.mean:,.0f}"
    return cell.text(digits)


def _targets(table: Table) -> str:
    lines = []
    for target in table.targets:
        sign = "≥" if target.at_least else "≤"
        met = {True: "yes", False: "no", None: NOT_RUN}[target.met]
        measured = NOT_RUN if target.measured is None else number(target.measured)
        source = "as published" if target.published else "own target"
        lines.append(
            [target.text, target.labels, f"{sign} {target.limit:g}", source, measured, met]
        )
    return markdown_table(["", "labels", "target", "", "measured, mean over seeds", "met"], lines)


def _origin(table: Table) -> str:
    origin = table.provenance
    if not origin["commands"]:
        return "Nothing was run yet."
    versions = ", ".join(f"{name} {'/'.join(v)}" for name, v in origin["versions"].items())
    threads = "/".join(map(str, origin["threads"]))
    return (
        f"Evaluated {' to '.join(dict.fromkeys((origin['dates'][0], origin['dates'][-1])))} on "
        f"{', '.join(origin['cpu'])}, {threads} thread(s); {versions}. ± is the {table.spread}; "
        f"ratios are taken seed by seed. The command of every cell is in `table.json`; all at once:\n\n"
        f"```bash\n{origin['command']}\n```"
    )


def write_table(table: Table, folder: Path, documents: Sequence[Path] = ()) -> list[Path]:
    """Write table.json and table.md, and fill the marked places of documents.

    A document is filled where it holds ``<!-- results-table … -->`` (the short table) or
    ``<!-- ethanol-table … -->`` (all of it), each closed by ``<!-- /… -->``.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        folder / "table.json": json.dumps(table.to_json(), indent=1, ensure_ascii=False) + "\n",
        folder / "table.md": f"# Ethanol\n\n{page(table)}",
    }
    for document in documents:
        if document.is_file():
            old = document.read_text(encoding="utf-8")
            new = filled(old, "results-table", short_table(table))
            new = filled(new, "ethanol-table", page(table))
            if new != old:
                texts[document] = new
    for path, text in texts.items():
        with atomic_text(path) as file:
            file.write(text)
    return list(texts)
