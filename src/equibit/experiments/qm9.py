"""QM9: energies of molecules at rest, FP32 and low-bit forms of one network."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from equibit.datasets import load_dataset
from equibit.experiments.ethanol import CONFIGS
from equibit.experiments.experiment import ExperimentConfig
from equibit.experiments.report import Claim, Report
from equibit.experiments.variants import (
    CONTROL_VARIANT,
    PARENT,
    Variant,
    Variants,
    VariantsConfig,
)
from equibit.structures.errors import EquibitError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FP32 = Variant(PARENT, None, "FP32")
PUBLISHED = {PARENT: 8.5, "w8a8": 8.9}  # [P1] IV.B, energy MAE in meV
LARGEST_RISE = 1.05  # of the energy error of W8A8 over FP32: what we aim at


class Qm9Config(VariantsConfig):
    """As ``VariantsConfig``; all molecules of the set are used, ``validation`` of them to choose."""

    training: Path = CONFIGS / "qm9.yaml"
    dataset: str = "qm9"
    validation: int | None = 2000
    fine_tuning: Path = CONFIGS / "qm9-qat.yaml"


class Qm9(Variants[Qm9Config]):
    """Energies of QM9, FP32, its control, W8A8 and W4A8."""

    name = "qm9"
    config_type: ClassVar[type[ExperimentConfig]] = Qm9Config
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "training": CONFIGS / "quick-qm9.yaml",
        "train": 400,
        "validation": 50,
        "test": 100,
        "fine_tuning": CONFIGS / "quick-qat.yaml",
        "rotations": 2,
        "rotated_structures": 5,
    }

    def known(self) -> Sequence[Variant]:
        return (
            CONTROL_VARIANT,
            Variant("w8a8", "w8a8", "8-bit weights and activations, local frames"),
            Variant("w4a8", "w4a8", "4-bit weights"),
        )

    def report(self) -> Report:
        rows = (FP32, *self.variants())
        cell = self.cell
        return self.reported(
            title="QM9: energies of molecules at rest",
            protocol=self._protocol(),
            tables=(
                self.table(
                    "Errors of energies on the test set, symmetry and size",
                    rows,
                    {
                        "what": lambda v: v.words,
                        "energy MAE, meV": cell("energy_mae"),
                        "energy RMSE, meV": cell("energy_rmse"),
                        "over FP32": lambda v: self.over(v, "energy_mae", FP32),
                        "over control": lambda v: self.over(v, "energy_mae", CONTROL_VARIANT),
                        "LEE mean, meV/Å": cell("lee_mean"),
                        "LEE median, meV/Å": cell("lee_median"),
                        "net torque, meV": cell("net_torque"),
                        "file, bytes": self.file_bytes,
                        "quantised layers": self.smaller,
                    },
                    "The molecules have no labels of forces. LEE and torque are of predicted forces. "
                    f"Wanted: W8A8 at most {LARGEST_RISE:g} of FP32.",
                ),
            ),
            claims=() if self.config.quick else tuple(self.claims()),
            data={PARENT: self.figures(FP32), **self.numbers()},
            places=self.places(),
            draw=self._draw if any(self.evaluations(v) for v in rows) else None,
        )

    def _protocol(self) -> str:
        config = self.config
        try:
            data = load_dataset(config.dataset, download=False)
            parts = {
                name: min(len(data.splits[name]), limit or len(data.splits[name]))
                for name, limit in (
                    ("train", config.train),
                    ("validation", config.validation),
                    ("test", config.test),
                )
            }
            words = (
                f"{parts['train']:,} training, {parts['validation']:,} validation and "
                f"{parts['test']:,} test molecules of {config.dataset}: {len(data):,}, split 80/10/10 "
                f"({data.split_note})"
            )
        except EquibitError:
            words = f"Molecules of {config.dataset}, which is not on this machine, split 80/10/10"
        training = self.training(0, ())
        steps = training.optimization
        return (
            f"{words}. Electronic energies U0 − ZPVE, B3LYP/6-31G(2df,p), learned without forces; "
            f"{steps.epochs} epochs in batches of {steps.batch_size} of similar size, then "
            f"{self.tuning(CONTROL_VARIANT, 0).epochs} epochs of fine-tuning of the control and each "
            "low-bit form."
        )

    def claims(self) -> list[Claim]:
        """What the papers say of QM9, and our targets, judged by the means over seeds."""
        by_name = {variant.name: variant for variant in (FP32, *self.known())}
        return [
            *(
                self.error_claim(
                    f"energy MAE of {'FP32' if name == PARENT else 'INT8'} on QM9",
                    "P1 IV.B",
                    published,
                    by_name[name],
                    "energy_mae",
                    "meV",
                    "theirs on 134k molecules, split unknown; ours on those of them that the protocol "
                    "names",
                )
                for name, published in PUBLISHED.items()
            ),
            self.rise_claim(
                "INT8 raises the energy error by less than 5 %",
                "P1 IV.B",
                1.047,
                (by_name["w8a8"], FP32),
                "energy_mae",
                "w8a8 over the FP32 network it was made from, which had no extra epochs",
            ),
        ]

    def _draw(self, figure: Figure) -> None:
        figure.set_size_inches(10, 3.6)
        curves, bars = figure.subplots(1, 2)
        for seed in self.config.seeds:
            draw_curve(curves, self._parent_folder(seed, ()) / "metrics.csv", f"FP32, seed {seed}")
        curves.set_xlabel("epoch")
        curves.set_ylabel("validation energy MAE, meV")
        curves.set_yscale("log")
        curves.grid(alpha=0.3, lw=0.5, which="both")
        ran = [v for v in (FP32, *self.variants()) if self.evaluations(v)]
        found = [self.metric(v, "energy_mae") for v in ran]
        bars.bar([v.name for v in ran], [0.0 if f is None else f.mean for f in found], width=0.6)
        bars.set_ylabel("test energy MAE, meV")
        if not self.config.quick:
            for words, value, style in (("FP32", 8.5, "--"), ("INT8", 8.9, ":")):
                bars.axhline(value, color="0.3", ls=style, lw=1, label=f"paper 1, {words}")
                curves.axhline(value, color="0.3", ls=style, lw=1)
            bars.margins(y=0.25)  # room for the legend
            bars.legend(fontsize="x-small")
        if curves.get_legend_handles_labels()[0]:
            curves.legend(fontsize="x-small")
        form = "quick form: no evidence" if self.config.quick else "full protocol"
        figure.suptitle(f"QM9 ({form})", fontsize="medium")


def draw_curve(axis: Axes, path: Path, label: str, name: str = "val_energy_mae_meV") -> None:
    """The learning curve of a run, where it has one."""
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(name)]
    except OSError:
        return
    axis.plot([int(row["epoch"]) + 1 for row in rows], [float(row[name]) for row in rows],
              label=label, lw=1)  # fmt: skip
