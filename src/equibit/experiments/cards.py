"""Model cards: what a model was made from and how well it does, from its file and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equibit.datasets.catalog import ENTRIES
from equibit.evaluation.description import (
    ModelDescription,
    describe_model,
)
from equibit.evaluation.summary import byte_count, number
from equibit.models.shipped import CARD_SUFFIX
from equibit.models.zoo import LICENCE
from equibit.storage.atomic import atomic_text
from equibit.structures.errors import ConfigError


def write_card(
    model: Path, evaluation: Mapping[str, Any], *, path: Path | None = None, command: str = ""
) -> Path:
    """Write the card of a model file beside it, or at ``path``, and return where.

    Args:
        model: the file.
        evaluation: what ``equibit evaluate`` or the ethanol experiment wrote about it.
        path: of the card.
        command: that made the model, where the evaluation does not say.

    Raises:
        FileFormatError: not a model file.
        ConfigError: the evaluation is about another model.
    """
    text = model_card(model, evaluation, command=command)
    target = path or model.with_suffix(CARD_SUFFIX)
    with atomic_text(target) as file:
        file.write(text)
    return target


def model_card(model: Path, evaluation: Mapping[str, Any], *, command: str = "") -> str:
    """The card as Markdown; see ``write_card``."""
    description = describe_model(model)
    _check_about(description, evaluation)
    made_by = evaluation.get("command") or command
    parts = [
        f"# {description.name}",
        _headline(description),
        "## Made from",
        _table(_origin(description)),
        *(["```bash\n" + made_by + "\n```"] if made_by else []),
        "## Figures",
        _figures(evaluation),
        "## What is rounded",
        "\n".join(f"- {sentence}" for sentence in description.recipe_words),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(description)),
        f"Licence: {LICENCE}. SHA-256 of the file: `{description.sha256}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _check_about(description: ModelDescription, evaluation: Mapping[str, Any]) -> None:
    digest = evaluation.get("model_sha256")
    try:
        name = evaluation["model"]["info"]["name"]
    except (KeyError, TypeError) as error:
        raise ConfigError("this is no evaluation; `equibit evaluate` writes one") from error
    if name != description.name or digest not in (None, description.sha256):
        raise ConfigError(
            f"the evaluation is about another model file ({name}) than {description.file}; "
            "evaluate this one"
        )


def _headline(description: ModelDescription) -> str:
    size = description.size
    elements = ", ".join(description.elements)
    form = "FP32" if description.recipe == "fp32" else f"`{description.recipe}`"
    return (
        f"{form} `{description.architecture}` force field for {elements}, cutoff "
        f"{description.cutoff:g} Å a layer, {description.n_weights:,} numbers in "
        f"{byte_count(size.file_bytes)}. Energies in eV, forces in eV/Å."
    )


def _origin(description: ModelDescription) -> list[tuple[str, str]]:
    training = description.training
    rows = [("data", str(training.get("dataset", "–")))]
    entry = ENTRIES.get(str(training.get("dataset")))
    if entry is not None:
        rows += [("labels", entry.level_of_theory), ("cite", entry.citation)]
    rows += [
        (key, str(training[key]))
        for key in ("split", "train", "validation", "epochs", "seed")
        if training.get(key) is not None
    ]
    parent = training.get("parent")
    if isinstance(parent, Mapping):
        own = parent.get("training", {})
        epochs, seed = own.get("epochs", "–"), own.get("seed", "–")
        rows.append(("parent", f"{parent.get('name')}, {epochs} epochs, seed {seed}"))
    settings = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in description.hyperparameters.items()
    )
    return [*rows, ("network", settings)]


def _figures(evaluation: Mapping[str, Any]) -> str:
    data, place = evaluation["data"], evaluation["provenance"]
    rows = [
        (label, _of(evaluation, ("model", *path), unit), _of(evaluation, ("parent", *path), unit))
        for label, unit, path in (
            ("energy MAE", "meV", ("errors", "energy", "mae")),
            ("energy RMSE", "meV", ("errors", "energy", "rmse")),
            ("force MAE", "meV/Å", ("errors", "forces", "mae")),
            ("force RMSE", "meV/Å", ("errors", "forces", "rmse")),
            ("net force, mean", "meV/Å", ("net", "force", "mean")),
            ("net torque, mean", "meV", ("net", "torque", "mean")),
        )
    ]
    for label, key in (("mean", "mean"), ("median", "median")):
        rows.append(
            (
                f"LEE in float32, {label}",
                _of(evaluation, ("equivariance", "forces", key), "meV/Å"),
                _of(evaluation, ("floors", "FP32 parent", "forces", key), "meV/Å"),
            )
        )
    rows.append(
        (
            "LEE in float64, largest",
            _of(evaluation, ("floors", "FP64 model", "forces", "maximum"), "meV/Å"),
            _of(evaluation, ("floors", "FP64 parent", "forces", "maximum"), "meV/Å"),
        )
    )
    lines = ["| | this model | FP32 parent |", "|---|---:|---:|"]
    if evaluation.get("parent") is None:
        lines = ["| | this model |", "|---|---:|"]
        rows = [(label, mine) for label, mine, _ in rows]  # type: ignore[misc]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    size, symmetry = evaluation.get("size"), evaluation.get("equivariance")
    turned = (
        f" LEE: {symmetry['n_rotations']} random rotations of {symmetry['n_structures']} structures."
        if symmetry
        else ""
    )
    where = (
        f"{data['n_structures']} {data['subset'] or ''} structures of {data['dataset']}".replace(
            "  ", " "
        )
    )
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    smaller = (
        f" The file is {number(size['file_ratio'])}× smaller than its parent's, everything counted; "
        f"its quantised layers are {number(size['quantized_ratio'])}× smaller."
        if size and size.get("quantized_ratio")
        else ""
    )
    return (
        "\n".join(lines)
        + f"\n\n{where}.{turned}{smaller} Measured {place['date'][:10]} on {place['cpu']}, "
        f"{place['threads']} thread(s); {versions}."
    )


def _of(tree: Any, path: Sequence[str], unit: str) -> str:
    for key in path:
        if not isinstance(tree, Mapping) or tree.get(key) is None:
            return "–"
        tree = tree[key]
    return f"{number(float(tree))} {unit}"


def _limits(description: ModelDescription) -> list[str]:
    entry = ENTRIES.get(str(description.training.get("dataset")))
    molecule = entry.molecule if entry is not None else None
    about = f"one molecule, {molecule}" if molecule else "the structures of its data set"
    limits = [
        f"It knows {about}, as sampled there: other molecules, broken bonds and far higher "
        "temperatures are outside what it can describe, and it does not warn.",
        f"Other elements than {', '.join(description.elements)} are refused.",
        "Its accuracy is that of its labels at best; figures hold for the test set named above.",
    ]
    details = description.recipe_details
    if details is not None:
        scalars = details.get("scalars")
        if scalars is not None and scalars["bits"] <= 8:
            limits.append(
                "With 8-bit activations the energy is a fine staircase, and forces are not exactly "
                "its gradient: for long dynamics at constant energy take a recipe with 16-bit "
                "activations (w8a16, w4a16)."
            )
        if details["vectors"]["frame"] == "lab" and details["vectors"]["codec"] != "identity":
            limits.append("It is not equivariant: forces depend on how the molecule lies.")
    return limits


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
