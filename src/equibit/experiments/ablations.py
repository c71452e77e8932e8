"""What each part is worth: the papers' four ablations, and those that they leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import yaml
from torch import Tensor, nn

from equibit.evaluation.batches import Progress
from equibit.evaluation.summary import number
from equibit.experiments.ethanol import CONFIGS
from equibit.experiments.quantisers import judged
from equibit.experiments.report import NOT_RUN, Claim, Report, Table
from equibit.experiments.stages import Measure, Stage, held_out_structures
from equibit.experiments.variants import (
    CONTROL_VARIANT,
    FEW_STRUCTURES,
    Variant,
    Variants,
    VariantsConfig,
)
from equibit.models.files import load_network
from equibit.networks.attention import NeighbourAttention
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import Batch, atomic_energies, build_graph, orient
from equibit.quantization.convert import calibrate, quantize_
from equibit.quantization.recipes import Recipe, ScalarSpec, VectorSpec, get_recipe
from equibit.structures import Structure
from equibit.training.batches import Collator
from equibit.training.qat import QuantizationConfig
from equibit.training.run import MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, OURS = get_recipe("paper-w8a8"), get_recipe("w8a8")
LEE_WEIGHT = 0.1  # of the equivariance loss in the papers' own form
PLAIN = ("robust_attention=false",)
SOFTMAX = ("attention=softmax",)
# All that is not a channel mixing of vectors.
SCALAR_BRANCH = ("attention.*", "update.*.hidden", "update.*.output", "head.*")
CODECS = ("cartesian", "mddq", "mddq-cube", "mddq-codebook")
FRAMES, BITS = ("lab", "local"), (8, 6, 4)
FEWEST_CODEBOOK_BITS = 5  # below it no codebook is symmetric enough


def changed(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """A recipe with another name and some things otherwise."""
    return Recipe.model_validate({**recipe.model_dump(), "name": name, **changes})


def _vectors(recipe: Recipe, **changes: Any) -> VectorSpec:
    return VectorSpec.model_validate({**recipe.vectors.model_dump(), **changes})


def papers_variants() -> list[Variant]:
    """Their INT8 with the equivariance loss, and what is left of it in each of their ablations."""
    loss = {"lee_weight": LEE_WEIGHT}
    float_scalars: dict[str, Any] = {
        "scalars": None, "attention_bits": None, "keep_fp32": SCALAR_BRANCH
    }  # fmt: skip
    return [
        Variant("papers-int8", changed(PAPER, "papers-int8"), "their INT8, LEE loss on", loss),
        Variant(
            "scalars-only",
            changed(PAPER, "scalars-only", vectors=_vectors(PAPER, codec="identity")),
            "(1) vectors float",
        ),
        Variant(
            "vectors-only",
            changed(PAPER, "vectors-only", **float_scalars),
            "(2) scalars float",
            loss,
        ),
        Variant(
            "vectors-only-naive",
            changed(
                PAPER,
                "vectors-only-naive",
                vectors=_vectors(PAPER, codec="cartesian"),
                **float_scalars,
            ),
            "(2) and vectors by components",
            loss,
        ),
        Variant(
            "no-normalisation",
            changed(PAPER, "no-normalisation"),
            "(3) queries and keys as they are",
            loss,
            PLAIN,
        ),
        Variant("no-lee-loss", changed(PAPER, "no-lee-loss"), "(4) LEE loss off"),
    ]


def codec_variants() -> list[Variant]:
    """Every codec in either frame with 8, 6 and 4 bits; all else as in ``w8a8``."""
    found = []
    for bits in BITS:
        for codec in CODECS:
            if codec == "mddq-codebook" and bits < FEWEST_CODEBOOK_BITS:
                continue
            for frame in FRAMES:
                name = f"{codec}-{frame}-{bits}"
                vectors = VectorSpec(
                    codec=codec,
                    frame=frame,  # type: ignore[arg-type]
                    magnitude_bits=bits,
                    direction_bits=bits,
                )
                words = f"{codec}, {frame} frame, {bits} bits"
                found.append(Variant(name, changed(OURS, name, vectors=vectors), words))
    return found


def scale_variants() -> list[Variant]:
    """Steps of each atom against one learned step."""
    static = ScalarSpec.model_validate({**OURS.scalars.model_dump(), "scale": "static"})  # type: ignore[union-attr]
    learned = _vectors(OURS, scale="static")
    return [
        Variant("scales-dynamic", changed(OURS, "scales-dynamic"), "steps of each atom"),
        Variant(
            "scales-static-vectors",
            changed(OURS, "scales-static-vectors", vectors=learned),
            "one learned step for vectors",
        ),
        Variant(
            "scales-static-scalars",
            changed(OURS, "scales-static-scalars", scalars=static),
            "one learned step for scalars",
        ),
        Variant(
            "scales-static",
            changed(OURS, "scales-static", scalars=static, vectors=learned),
            "one learned step for both",
        ),
    ]


def schedule_variants(epochs: int) -> list[Variant]:
    """The first epochs round scalars only, none to all but the last."""
    lengths = sorted({0, epochs // 4, epochs // 2, epochs - 1})
    return [
        Variant(
            f"warm-up-{length}",
            changed(PAPER, f"warm-up-{length}"),
            f"{length} of {epochs} epochs round scalars only",
            {"scalar_epochs": length},
        )
        for length in lengths
    ]


def loss_variants() -> list[Variant]:
    """The weight of the equivariance loss on their INT8."""
    return [
        Variant(
            f"lee-{weight:g}",
            changed(PAPER, f"lee-{weight:g}"),
            f"LEE loss of weight {weight:g}",
            {"lee_weight": weight},
        )
        for weight in (0.01, 0.1, 1.0)
    ]


def attention_variants() -> list[Variant]:
    """Softmax with the temperature learned, fixed, and as Eq. 3 prints it."""
    return [
        Variant(
            f"softmax-{temperature}",
            changed(OURS, f"softmax-{temperature}"),
            f"softmax, temperature {temperature}",
            network=(*SOFTMAX, f"temperature={temperature}"),
        )
        for temperature in ("learned", "fixed", "printed")
    ]


class Stray(Measure):
    """How far rounded attention weights are from those of the parent."""

    kind = "attention"


class Ablations(Variants[VariantsConfig]):
    """The ablations on ethanol."""

    name = "ablations"
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "training": CONFIGS / "quick-training.yaml",
        "dataset": "ethanol-pbe",
        **FEW_STRUCTURES,
    }
    # The parent and the control are those of the ethanol table.
    folders: ClassVar[Mapping[str, Path]] = {"runs": Path("runs/ethanol")}

    def known(self) -> Sequence[Variant]:
        return [variant for _, variants in self.sections() for variant in variants]

    def sections(self) -> list[tuple[str, list[Variant]]]:
        """The tables and their rows."""
        return [
            ("The papers' four ablations", [CONTROL_VARIANT, *papers_variants()]),
            ("Codec, frame and bits of vectors", codec_variants()),
            ("Steps of each atom or learned", scale_variants()),
            ("Length of the warm-up", schedule_variants(self._epochs())),
            ("Weight of the LEE loss", loss_variants()),
            ("Temperature of the attention", attention_variants()),
        ]

    def _epochs(self) -> int:
        described = yaml.safe_load(self.config.fine_tuning.read_text())
        return int(described.get("epochs", QuantizationConfig.model_fields["epochs"].default))

    def measurements(self, stages: Sequence[Stage]) -> list[Stage]:
        made = {stage.output: stage for stage in stages}
        found: list[Stage] = []
        for seed in self.config.seeds:
            for variant in self.variants():
                if variant.name not in ("papers-int8", "no-normalisation"):
                    continue
                model = self.folder(variant, seed) / MODEL
                parent = self.parent_model(variant, seed)
                found.append(
                    Stray(
                        made[model].name,
                        self.config.results / f"{made[model].name}-attention.json",
                        {"structures": self._judged_structures()},
                        partial(self._stray, model, parent),
                        inputs=[model, parent],
                        needs=[made[model]],
                    )
                )
        return found

    def _judged_structures(self) -> int:
        return min(100, self.config.test or 100)

    def _stray(self, model: Path, parent: Path, progress: Progress) -> dict[str, Any]:
        data = self.data()
        structures = held_out_structures(data.dataset, data.root, data.split, data.units)
        structures = structures[: self._judged_structures()]
        return {
            "calibrated": attention_stray(
                parent, calibrated_from(parent, PAPER, structures), structures
            ),
            "fine-tuned": attention_stray(parent, load_network(model)[0], structures),
        }

    def strays(self) -> dict[str, Any]:
        """What was measured of attention weights, by variant and seed."""
        return {s.name: s.result() for s in self.stages() if isinstance(s, Stray) and s.done}

    def report(self) -> Report:
        wanted = {variant.name for variant in self.variants()}
        columns = {
            "what": lambda v: v.words,
            "energy MAE, meV": self.cell("energy_mae"),
            "force MAE, meV/Å": self.cell("forces_mae"),
            "forces over control": lambda v: self.over(v, "forces_mae", CONTROL_VARIANT),
            "LEE mean, meV/Å": self.cell("lee_mean"),
            "LEE median, meV/Å": self.cell("lee_median"),
            "LEE mean, float64": self.cell("lee64_mean"),
            "net torque, meV": self.cell("net_torque"),
        }
        tables = [
            self.table(title, kept, columns)
            for title, variants in self.sections()
            if (kept := [variant for variant in variants if variant.name in wanted])
        ]
        strays = self.strays()
        return self.reported(
            title="Ablations on ethanol",
            protocol=self._protocol(),
            tables=(*tables, stray_table(strays)),
            claims=() if self.config.quick else tuple(self.claims()),
            data={"variants": self.numbers(), "attention": strays},
            places=self.places(),
            draw=self._draw,
        )

    def _protocol(self) -> str:
        if self.config.quick:
            return (
                "A network of 16 scalars and 16 vectors in 2 layers, trained for 10 epochs on 100 "
                "structures of `ethanol-pbe` and fine-tuned for 2; 20 test structures."
            )
        return (
            "The FP32 network of rMD17 ethanol, split 1, fine-tuned for 20 epochs into each variant; "
            "where the network itself differs, a parent of its own is trained with the same "
            "description. The papers' variants start from their INT8 (static steps, magnitudes and "
            "directions in the laboratory frame), the others from `w8a8`. 1,000 test structures."
        )

    def claims(self) -> list[Claim]:
        """The papers' four ablations."""
        by_name = {variant.name: variant for variant in self.known()}

        def values(name: str) -> tuple[float | None, float | None, float | None]:
            found = (
                self.metric(by_name[name], m) for m in ("energy_mae", "forces_mae", "lee_mean")
            )
            energy, forces, lee = (None if f is None else f.mean for f in found)
            return energy, forces, lee

        full, scalars = values("papers-int8"), values("scalars-only")
        vectors, naive = values("vectors-only"), values("vectors-only-naive")
        plain, no_loss = values("no-normalisation"), values("no-lee-loss")
        reason = "theirs on QM9 energies and rMD17 forces, ours on ethanol."
        return [
            Claim(
                "(1) with float vectors errors fall and LEE vanishes",
                "P1 IV.B e",
                "8.7, 21, ≈ 0",
                _three(scalars),
                judged(
                    (*scalars, *full),
                    confirmed=lambda e, f, s, pe, pf, ps: e <= pe and f <= pf and s < 0.01 * ps,
                ),
                f"their INT8 {_three(full)}; {reason}",
            ),
            Claim(
                "(2) vectors alone cost more than scalars alone, components more than decoupling",
                "P1 IV.B e",
                "9.5, 24; components > 12",
                f"{_three(vectors)}; {_three(naive)}",
                judged(
                    (*vectors, *naive, *scalars),
                    confirmed=lambda e, f, s, ne, nf, ns, se, sf, ss: f > sf and ne > e,
                ),
                reason,
            ),
            Claim(
                "(3) without the normalisation of queries and keys training is unstable",
                "P1 IV.B e",
                "≈ 12",
                _three(plain),
                judged(
                    (*plain, *full), confirmed=lambda e, f, s, pe, pf, ps: e > 1.2 * pe and f > pf
                ),
                "its FP32 parent is trained without it as well.",
            ),
            Claim(
                "(4) without the LEE loss errors stay and LEE doubles",
                "P1 IV.B e",
                "9.1, 22.5, ≈ 4",
                _three(no_loss),
                judged(
                    (*no_loss, *full),
                    confirmed=lambda e, f, s, pe, pf, ps: s > 1.3 * ps and f < 1.05 * pf,
                ),
                f"with it {_three(full)}; local frames need no such loss.",
            ),
        ]

    def _draw(self, figure: Figure) -> None:
        figure.set_size_inches(9, 4)
        left, right = figure.subplots(1, 2)
        by_name = {variant.name: variant for variant in self.variants()}
        for codec in CODECS:
            for frame, style in zip(FRAMES, ("--", "-"), strict=True):
                for axis, metric in ((left, "forces_mae"), (right, "lee_mean")):
                    points = [
                        (bits, found.mean)
                        for bits in BITS
                        if (variant := by_name.get(f"{codec}-{frame}-{bits}")) is not None
                        and (found := self.metric(variant, metric)) is not None
                    ]
                    if points:
                        axis.plot(*zip(*points, strict=True), style, marker="o",
                                  color=f"C{CODECS.index(codec)}", label=f"{codec}, {frame}")  # fmt: skip
        for axis, label in ((left, "force MAE, meV/Å"), (right, "LEE mean, meV/Å")):
            axis.set_xlabel("bits")
            axis.set_ylabel(label)
            axis.set_xticks(BITS)
            axis.grid(alpha=0.3, lw=0.5)
        if right.lines:
            right.set_yscale("log")
            right.legend(fontsize="x-small")
        form = "quick form: no evidence" if self.config.quick else "full protocol"
        figure.suptitle(f"Codec and frame of vectors ({form})", fontsize="medium")


def calibrated_from(
    parent: Path, recipe: Recipe, structures: Sequence[Structure]
) -> AtomisticNetwork:
    """A network that is rounded and calibrated but not fine-tuned."""
    network, _ = load_network(parent)
    quantize_(network, recipe)
    calibrate(network, [Collator(structures, network)(range(len(structures))).inputs])
    return network.eval()


def attention_stray(
    parent: Path, network: AtomisticNetwork, structures: Sequence[Structure]
) -> list[dict[str, float]]:
    """How far the attention weights of a network are from those of its parent, layer by layer.

    Returns:
        For each layer ``rms``, √(Σ(α̂ − α)²/Σα²), and ``largest``, max|α̂ − α|/max|α|, over edges and
        heads.
    """
    config = network.config
    # One orientation for both, so that the same edges meet.
    batch = orient(network, *build_graph(structures, config.elements, config.cutoff))
    rounded = attention_weights(network, batch)
    plain = attention_weights(load_network(parent)[0].eval(), batch)
    return [
        {
            "rms": float((one - other).norm() / other.norm()),
            "largest": float((one - other).abs().max() / other.abs().max()),
        }
        for one, other in zip(rounded, plain, strict=True)
    ]


def attention_weights(network: AtomisticNetwork, batch: Batch) -> list[Tensor]:
    """α of every layer, in float64. Shape: each [*edges, heads]."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        found.append(output.detach().double())

    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, NeighbourAttention):
                hooks.callback(module.register_forward_hook(keep).remove)
        atomic_energies(network, batch, batch.edge_vectors)
    return found


def stray_table(strays: Mapping[str, Any]) -> Table:
    """Relative rms deviation of attention weights by layer."""
    layers = max((len(found["calibrated"]) for found in strays.values()), default=0)
    rows = [
        (f"`{name}`", form, *(f"{100 * layer['rms']:.2g} %" for layer in found[form]))
        for name, found in strays.items()
        for form in ("calibrated", "fine-tuned")
    ]
    return Table(
        "Attention weights: rms deviation from the FP32 parent",
        ("", "form", *(f"layer {layer + 1}" for layer in range(layers))),
        tuple(rows) if rows else (("all", NOT_RUN),),
        "Weights and activations of 8 bits, static steps, as in `paper-w8a8`. *Calibrated* shows "
        "rounding alone; *fine-tuned* also what training changed.",
    )


def _three(values: tuple[float | None, float | None, float | None]) -> str:
    if any(value is None for value in values):
        return NOT_RUN
    return ", ".join(number(value) for value in values)
