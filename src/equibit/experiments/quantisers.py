"""Quantisers side by side: the papers' forms, those they compare with, and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from equibit import engine
from equibit.evaluation.batches import Progress
from equibit.evaluation.summary import number
from equibit.experiments.ethanol import CONFIGS
from equibit.experiments.report import NOT_RUN, Claim, Report, Verdict
from equibit.experiments.stages import Measure, Stage, held_out_structures
from equibit.experiments.variants import (
    CONTROL_VARIANT,
    Variant,
    Variants,
    VariantsConfig,
    resolved,
)
from equibit.structures import Structure
from equibit.structures.errors import EquibitError
from equibit.training.run import MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "naive-w8a8": "naive INT8: per tensor, vectors by components in the laboratory frame",
    "jacob-w8a8": "Jacob et al.: affine, ranges by moving averages",
    "dorefa-w8a8": "DoReFa: nothing learned, tanh-bent weights",
    "pact-w8a8": "PACT with SAWB weights: learned clipping",
    "lsq-w8a8": "LSQ: learned steps",
    "lsq-w4a8": "LSQ, 4-bit weights",
    "degree-quant-w8a8": "Degree-Quant: atoms protected in training by their number of neighbours",
    "qdrop-w4a8": "QDrop with AdaRound: block by block, no labels",
    "smoothquant-w8a8": "SmoothQuant: outliers moved into weights, calibration alone",
    "zeroquant-w4a8": "ZeroQuant: groups, atom-wise steps, distilled layer by layer",
    "paper-w8a8": "paper 1: magnitudes and directions, laboratory frame",
    "paper-w4a8": "paper 1, 4-bit weights",
    "gaq-w4a8": "paper 2: codebook of directions, laboratory frame",
    "w8a8": "ours: local frames",
    "w4a8": "ours, 4-bit weights",
    "w4a16": "ours for dynamics: 16-bit activations, float vectors",
}
NOTES = (
    "QDrop, SmoothQuant and ZeroQuant are fitted after training, without labels; all others get the "
    "epochs of fine-tuning that the control gets. In ethanol every atom is every other's neighbour, so "
    "all atoms are protected alike and Degree-Quant's probabilities make no difference between them. "
    "LEE is measured in float32 as the model is used: networks whose vectors are rounded in no frame or "
    "in local ones are oriented first. Times are medians of interleaved calls of the compiled engine, "
    "energy and forces; – where it does not run a recipe."
)


class Timing(Measure):
    """The engine's time for energy and forces of one structure."""

    kind = "time"


class Quantisers(Variants[VariantsConfig]):
    """The table of quantisers on ethanol."""

    name = "quantisers"
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "parent": "ethanol-fp32",
        "dataset": "ethanol-pbe",
        "train": 100,
        "validation": 20,
        "test": 50,
        "fine_tuning": CONFIGS / "quick-qat.yaml",
        "rotations": 4,
        "rotated_structures": 5,
        "reconstruction_steps": 20,
    }
    # Parents, the control and the recipes of the ethanol table are the same networks.
    folders: ClassVar[Mapping[str, Path]] = {"runs": Path("runs/ethanol")}

    def known(self) -> Sequence[Variant]:
        return [CONTROL_VARIANT, *(Variant(name, name, words) for name, words in NAMES.items())]

    def measurements(self, stages: Sequence[Stage]) -> list[Stage]:
        made = {stage.output: stage for stage in stages}
        found: list[Stage] = []
        for seed in self.config.seeds:
            for variant in self.variants():
                model = self.folder(variant, seed) / MODEL
                parent = self.parent_model(variant, seed)
                found.append(
                    Timing(
                        made[model].name,
                        self.config.results / f"{made[model].name}-time.json",
                        {"built": engine.is_built(), "rounds": 5 if self.config.quick else 25},
                        partial(self._time, model, parent),
                        inputs=[model, parent],
                        needs=[made[model]],
                    )
                )
        return found

    def _time(self, model: Path, parent: Path, progress: Progress) -> dict[str, Any]:
        data = self.data()
        structure = held_out_structures(data.dataset, data.root, data.split, data.units)[0]
        return engine_times(model, parent, structure, rounds=5 if self.config.quick else 25)

    def timings(self, variant: Variant) -> list[dict[str, Any]]:
        """What the engine took, one per seed that was timed."""
        names = {self.folder(variant, seed).name for seed in self.config.seeds}
        return [
            result
            for stage in self.stages()
            if isinstance(stage, Timing) and stage.name in names and stage.done
            if (result := stage.result()) is not None
        ]

    def report(self) -> Report:
        variants = self.variants()
        times = {v.name: self.timings(v) for v in variants}
        accuracy = self.table(
            "Test errors, symmetry, size and time of the engine",
            variants,
            {
                "what": lambda v: v.words,
                "weights": _weight_words,
                "energy MAE, meV": self.cell("energy_mae"),
                "force MAE, meV/Å": self.cell("forces_mae"),
                "forces over control": lambda v: self.over(v, "forces_mae", CONTROL_VARIANT),
                "LEE mean, meV/Å": self.cell("lee_mean"),
                "LEE median, meV/Å": self.cell("lee_median"),
                "net torque, meV": self.cell("net_torque"),
                "file, bytes": self.file_bytes,
                "quantised layers": self.smaller,
                "µs": lambda v: _microseconds(times[v.name]),
                "speed-up over FP32": lambda v: _speed_up(times[v.name]),
            },
            NOTES,
        )
        return self.reported(
            title="Quantisers on ethanol",
            protocol=self._protocol(),
            tables=(accuracy,),
            claims=() if self.config.quick else tuple(self.claims()),
            data={"variants": self.numbers(), "times": times},
            places=self.places(),
            draw=self._draw,
        )

    def _protocol(self) -> str:
        if self.config.quick:
            return (
                "The shipped FP32 network of ethanol, fine-tuned for 2 epochs on 100 structures of "
                "`ethanol-pbe`, whose level of theory is another one; 50 test structures; 20 steps for "
                "each block where blocks are fitted."
            )
        return (
            "One FP32 network of rMD17 ethanol, split 1 (950 + 50 training and validation structures), "
            "fine-tuned for 20 epochs at 3 × 10⁻⁴ into each form; 1,000 test structures, LEE of 25 of "
            "them under 32 random rotations each. Published hyper-parameters of the compared methods "
            "are kept; their schedule is ours, so that all have seen the same data."
        )

    def claims(self) -> list[Claim]:
        """What the papers say of these, judged by the means over seeds."""
        by_name = {variant.name: variant for variant in self.known()}

        def value(name: str, metric: str) -> float | None:
            found = self.metric(by_name[name], metric)
            return None if found is None else found.mean

        def rise(name: str, metric: str) -> float | None:
            ratio = self.ratio(by_name[name], metric, CONTROL_VARIANT)
            return None if ratio is None else 100 * (ratio - 1)

        paper = rise("paper-w8a8", "energy_mae"), rise("paper-w8a8", "forces_mae")
        ours = rise("w8a8", "energy_mae"), rise("w8a8", "forces_mae")
        degree = rise("degree-quant-w8a8", "energy_mae"), rise("degree-quant-w8a8", "forces_mae")
        four = rise("gaq-w4a8", "energy_mae"), rise("gaq-w4a8", "forces_mae")
        lee8 = value("paper-w8a8", "lee_mean"), value("w8a8", "lee_mean")
        lee_degree = value("degree-quant-w8a8", "lee_mean")
        lee4 = value("gaq-w4a8", "lee_mean"), value("w4a8", "lee_mean")
        naive = value("naive-w8a8", "lee_mean")
        size = value("paper-w8a8", "quantized_ratio")
        claims = [
            Claim(
                "INT8 raises energy and force errors by at most 4.7 % and 6.6 %",
                "P1 IV.B",
                "+4.7 %, +6.6 %",
                f"paper-w8a8 {_percents(paper)}; w8a8 {_percents(ours)}",
                better(
                    judged(ours, confirmed=lambda e, f: e < 4.7 and f < 6.6),
                    judged(paper, confirmed=lambda e, f: e <= 4.7 and f <= 6.6),
                ),
                "theirs on QM9 energies and the mean of rMD17 molecules, ours on ethanol, against a "
                "control with the same extra epochs; energies near 1 meV feel the rounding more.",
            ),
            Claim(
                "Degree-Quant loses more than their INT8",
                "P1 IV.B",
                "+33 %, +32 %",
                f"{_percents(degree)} against {_percents(paper)}",
                judged(degree + paper, confirmed=lambda de, df, pe, pf: de > pe and df > pf),
                "on molecules smaller than the cutoff all atoms have equally many neighbours.",
            ),
            Claim(
                "LEE of INT8 ≈ 2 meV/Å, below Degree-Quant's ≈ 3",
                "P1 IV.B a",
                "2 against 3",
                f"paper-w8a8 {_value(lee8[0])}, Degree-Quant {_value(lee_degree)}, w8a8 {_value(lee8[1])}",
                better(
                    judged((lee8[1],), confirmed=lambda own: own < 2),
                    judged((lee8[0], lee_degree), confirmed=lambda p, d: p < d),
                ),
                "rounding in local frames is exactly equivariant; what is left is float noise.",
            ),
            Claim(
                "LEE of W4A8 ≈ 0.15 meV/Å, naive INT8 more than 30 times worse",
                "P2 abstract, Fig. 1",
                "0.15, > 30×",
                f"gaq-w4a8 {_value(lee4[0])}, w4a8 {_value(lee4[1])}, naive {_value(naive)}",
                better(
                    judged((lee4[1], naive), confirmed=lambda own, n: own < 0.15 and n > 30 * own),
                    judged((lee4[0], naive), confirmed=lambda g, n: g <= 0.15 and n > 30 * g),
                ),
                "an 8-bit codebook leaves 5° of direction, far too much for 0.15 in the laboratory "
                "frame; only the frame explains such a figure.",
            ),
            Claim(
                "W4A8 is at least as accurate as FP32",
                "P1 IV.B g, P2 abstract",
                "−23 %, +1 %",
                f"gaq-w4a8 {_percents(four)}",
                judged(four, confirmed=lambda e, f: e <= 0 and f <= 1.2),
                "theirs on MD17 labels, without an FP32 control of the same extra epochs.",
            ),
            Claim(
                "quantised layers take about a quarter of the memory at 8 bits",
                "P1 IV.B b",
                "≈ 4×",
                NOT_RUN if size is None else f"{number(size)}×",
                judged((size,), confirmed=lambda s: s >= 3.8),
                "steps, biases and centres counted.",
            ),
        ]
        return claims

    def _draw(self, figure: Figure) -> None:
        ran = [v for v in self.variants() if self.evaluations(v)]
        figure.set_size_inches(10, 0.32 * len(ran) + 1.6)
        axes = figure.subplots(1, 3, sharey=True)
        for axis, (name, label) in zip(
            axes,
            (
                ("energy_mae", "energy MAE, meV"),
                ("forces_mae", "force MAE, meV/Å"),
                ("lee_mean", "LEE mean, meV/Å"),
            ),
            strict=True,
        ):
            means = [(self.metric(v, name) or _NONE).mean for v in ran]
            axis.barh([v.name for v in ran], means, color="tab:blue", height=0.7)
            axis.set_xlabel(label)
            axis.grid(axis="x", alpha=0.3, lw=0.5)
            if any(mean > 0 for mean in means):
                axis.set_xscale("log")
        axes[0].invert_yaxis()
        form = "quick form: no evidence" if self.config.quick else "full protocol"
        figure.suptitle(f"Quantisers on ethanol ({form})", fontsize="medium")


class _None:
    mean = float("nan")


_NONE = _None()


def judged(values: Sequence[float | None], *, confirmed: Callable[..., bool]) -> Verdict:
    """A verdict from figures, ``not run`` where one of them is missing."""
    if any(value is None for value in values):
        return "not run"
    return "confirmed" if confirmed(*values) else "not confirmed"


def better(ours: Verdict, theirs: Verdict) -> Verdict:
    """``surpassed`` where our form does better than the papers claim of theirs, else of theirs."""
    return "surpassed" if ours == "confirmed" else theirs


def engine_times(
    model: Path, parent: Path, structure: Structure, *, rounds: int, calls: int = 20
) -> dict[str, Any]:
    """Median processor time of the compiled engine for energy and forces, in turns with its parent.

    Returns:
        ``microseconds`` and ``parent_microseconds``, or the ``reason`` why it does not run.
    """
    try:
        potentials = [engine.load(path) for path in (model, parent)]
    except EquibitError as error:
        return {"reason": str(error)}
    taken: list[list[float]] = [[], []]
    for _ in range(rounds):
        for potential, times in zip(potentials, taken, strict=True):
            potential.compute([structure])
            start = time.thread_time()
            for _ in range(calls):
                potential.compute([structure])
            times.append(1e6 * (time.thread_time() - start) / calls)
    own, other = (float(np.median(times)) for times in taken)
    return {"microseconds": own, "parent_microseconds": other, "kernels": potentials[0].kernels}


def _weight_words(variant: Variant) -> str:
    if variant.recipe is None:
        return "FP32"
    recipe = resolved(variant.recipe)
    fitted = "calibrated" if recipe.post_training else "fine-tuned"
    return f"{recipe.weights.bits} bits, {fitted}"


def _microseconds(times: Sequence[Mapping[str, Any]]) -> str:
    if not times:
        return NOT_RUN
    found = [entry["microseconds"] for entry in times if "microseconds" in entry]
    return number(float(np.mean(found))) if found else "–"


def _speed_up(times: Sequence[Mapping[str, Any]]) -> str:
    if not times:
        return NOT_RUN
    found = [
        entry["parent_microseconds"] / entry["microseconds"]
        for entry in times
        if "microseconds" in entry
    ]
    return f"{number(float(np.mean(found)))}×" if found else "–"


def _percents(values: Sequence[float | None]) -> str:
    if any(value is None for value in values):
        return NOT_RUN
    return ", ".join(f"{value:+.1f} %".replace("-", "−") for value in values)


def _value(value: float | None) -> str:
    return NOT_RUN if value is None else number(value, 2)
