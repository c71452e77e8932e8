"""Tables over molecules, whole, on toys that take seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.small import small_rmd17
from tests.experiments.test_ethanol import configured

from equibit.experiments.ethanol import ELEMENTS, Ethanol, EthanolConfig
from equibit.experiments.molecules import Rmd17, TableTwo
from equibit.experiments.published import MACE_RMD17, TABLE_TWO, TABLE_TWO_NETWORKS
from equibit.experiments.shipping import ship
from equibit.models import load_potential
from equibit.structures import ConfigError


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Data of two molecules, and everything run once on rMD17's labels."""
    root = tmp_path_factory.mktemp("molecules")
    for molecule in ("ethanol", "malonaldehyde"):
        small_rmd17(root / "data", molecule=molecule)
    patch = pytest.MonkeyPatch()
    patch.setenv("EQUIBIT_DATA", str(root / "data"))
    patch.chdir(root)  # where no page of the documentation could be filled with toys
    toy = configured(root)
    given = {
        "molecules": "ethanol,malonaldehyde",
        "recipes": "w4a8",
        "training": toy.training,
        "fine_tuning": toy.fine_tuning,
        "rotations": 2,
        "rotated_structures": 2,
        "runs": root / "runs",
    }
    Rmd17.configured(results=root / "results" / "rmd17", **given).run()
    yield given | {"results": root / "results" / "rmd17"}
    patch.undo()


def test_every_molecule_has_its_figures(settings: dict[str, Any]) -> None:
    report = json.loads(settings["results"].with_suffix(".json").read_text())
    assert report["missing"] == []
    assert set(report["data"]) == {
        f"{molecule} {variant}"
        for molecule in ("ethanol", "malonaldehyde")
        for variant in ("fp32", "w4a8")
    }
    measured, beside = report["tables"]
    for row in measured["rows"]:
        forces = report["data"][f"{row[0]} fp32"]["0"]["forces_mae"]
        low = report["data"][f"{row[0]} w4a8"]["0"]["forces_mae"]
        assert f"{forces:.3g}" in row[1]
        assert row[-1].startswith(f"{low / forces:.2f}"[:4])
    assert [row[1] for row in beside["rows"]] == ["0.4, 2.1", "0.8, 4.1"]
    # Not all ten molecules were run, so nothing is said of their mean.
    assert report["claims"][0]["verdict"] == "not run"


def test_networks_are_shared_with_the_table_of_one_molecule(settings: dict[str, Any]) -> None:
    single = Ethanol(
        EthanolConfig(
            labels=("rmd17",), seeds=(0,), recipes=("w4a8",), molecule="malonaldehyde",
            training=settings["training"], fine_tuning=settings["fine_tuning"],
            runs=settings["runs"] / "malonaldehyde",
            results=settings["results"].parent / "malonaldehyde",
        )
    )  # fmt: skip
    done = {f"{s.kind} {s.name}" for s in single.stages() if s.done}
    assert {"train rmd17-fp32-seed0", "quantize rmd17-w4a8-seed0"} <= done
    assert "quantize rmd17-control-seed0" not in done


def test_models_of_any_molecule_can_be_shipped(settings: dict[str, Any], tmp_path: Path) -> None:
    family = Rmd17.configured(**settings).family("malonaldehyde")
    model, card, _ = ship(family, tmp_path, seed=0, variants=["w4a8"])
    assert model.name == "malonaldehyde-w4a8.safetensors"
    assert load_potential(model).info.name == "malonaldehyde-w4a8"
    assert "rmd17/malonaldehyde" in card.read_text()


def test_table_two_has_published_figures_in_a_table_of_their_own(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    experiment = TableTwo.configured(**settings | {"results": tmp_path / "table2"})
    report = experiment.report()
    assert len(report.missing) == 8, "MD17's labels make other networks than rMD17's"
    measured, published = report.tables
    assert all("not run" in cell for row in measured.rows for cell in row[1:])
    assert published.rows[0][-1] == "1.74, 4.21"
    assert {claim.published for claim in report.claims} == {
        "1.74 meV", "4.21 meV/Å", "2.57 meV", "6.53 meV/Å"
    }  # fmt: skip
    assert all(claim.verdict == "not run" for claim in report.claims)


def test_a_claim_is_judged_by_the_figure(settings: dict[str, Any]) -> None:
    claims = list(TableTwo.configured(**settings)._claims({("ethanol", "w4a8"): (1.73, 4.5)}))
    assert [claim.verdict for claim in claims[:2]] == ["surpassed", "not confirmed"]


def test_published_figures_are_complete() -> None:
    assert set(MACE_RMD17) == set(ELEMENTS)
    assert len(TABLE_TWO) == 7
    assert {len(row) for row in TABLE_TWO.values()} == {len(TABLE_TWO_NETWORKS)}


def test_molecules_are_checked() -> None:
    with pytest.raises(ConfigError, match="no molecule 'aspirine': known are aspirin"):
        Rmd17.configured(molecules="aspirine")
    with pytest.raises(ConfigError, match="no molecule 'methane'"):
        Ethanol.configured(molecule="methane")


def test_quick_forms_leave_the_full_ones_alone() -> None:
    quick = Rmd17.configured(quick=True)
    assert quick.config.molecules == ("ethanol", "malonaldehyde")
    for stage in quick.stages():
        assert "quick" in stage.output.parts
