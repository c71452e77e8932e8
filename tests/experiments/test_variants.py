"""The tables of quantisers and ablations, on a toy that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiments.small import NETWORK, small_data, small_model, small_structures

from equibit import engine
from equibit.experiments.ablations import (
    Ablations,
    attention_stray,
    calibrated_from,
    changed,
    stray_table,
)
from equibit.experiments.quantisers import NAMES, Quantisers, better, engine_times, judged
from equibit.experiments.variants import Variant, resolved
from equibit.models.files import load_network
from equibit.networks.equivariant_transformer import EquivariantTransformerConfig
from equibit.networks.linear import EquivariantLinear
from equibit.networks.registry import build_network
from equibit.quantization.convert import quantize_, quantized_layers
from equibit.quantization.recipes import RECIPES, get_recipe
from equibit.structures import ConfigError

TUNING = "epochs: 1\nscalar_epochs: 0\n"


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    tuning = root / "tuning.yaml"
    tuning.write_text(TUNING)
    return {
        "parent": str(small_model(root / "parent.safetensors")),
        "dataset": str(small_data(root / "toy.xyz")),
        "train": None,
        "validation": None,
        "test": 4,
        "fine_tuning": tuning,
        "rotations": 2,
        "rotated_structures": 2,
        "reconstruction_steps": 3,
        "runs": root / "runs",
        "results": root / "results" / "it",
        **changes,
    }


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reports fill pages of the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Quantisers:
    root = tmp_path_factory.mktemp("quantisers")
    experiment = Quantisers.configured(
        quick=True, **settings(root, variants="jacob-w8a8,smoothquant-w8a8,qdrop-w4a8")
    )
    experiment.run()
    return experiment


def record(experiment: Quantisers) -> dict[str, Any]:
    base = experiment.config.results
    return dict(json.loads(base.with_name(f"{base.name}.json").read_text()))


def rows_of_weights(numbers: dict[str, Any]) -> list[str]:
    return [name for name, found in numbers.items() if found["quantized_ratio"] is not None]


def test_every_variant_has_its_figures(finished: Quantisers) -> None:
    plain = record(finished)
    assert plain["missing"] == []
    (table,) = plain["tables"]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert list(rows) == ["`control`", "`jacob-w8a8`", "`qdrop-w4a8`", "`smoothquant-w8a8`"]
    assert rows["`control`"]["forces over control"] == "–"
    assert rows["`qdrop-w4a8`"]["weights"] == "4 bits, calibrated"
    assert rows["`jacob-w8a8`"]["weights"] == "8 bits, fine-tuned"
    for row in rows.values():
        assert "not run" not in row.values()
    numbers = plain["data"]["variants"]
    assert (
        numbers["jacob-w8a8"]["lee_mean"]["mean"] > 1e3 * numbers["control"]["lee64_mean"]["mean"]
    )
    ratios = {name: numbers[name]["quantized_ratio"]["mean"] for name in rows_of_weights(numbers)}
    assert ratios["qdrop-w4a8"] > ratios["jacob-w8a8"]
    assert plain["quick"] is True
    assert plain["claims"] == []
    assert plain["command"].startswith("equibit reproduce quantisers --quick --runs")


def test_methods_without_training_get_none(finished: Quantisers) -> None:
    for name, epochs in (("qdrop-w4a8", 0), ("smoothquant-w8a8", 0), ("jacob-w8a8", 1)):
        variant = Variant(name, name)
        header = load_network(finished.folder(variant, 0) / "model.safetensors")[1]
        assert header["training"]["epochs"] == epochs
        assert header["quantization"]["recipe"]["name"] == name


def test_nothing_is_done_twice_and_what_is_missing_says_so(finished: Quantisers) -> None:
    said: list[str] = []
    finished.run(say=said.append)
    assert all(line.endswith(": done") for line in said)
    other = Quantisers(finished.config.model_copy(update={"variants": ("lsq-w8a8",)}))
    report = other.report()
    assert "quantize toy-lsq-w8a8-seed0" in report.missing
    assert report.tables[0].rows[1][3:5] == ("not run", "not run")


def test_a_recipe_that_says_otherwise_asks_for_a_new_model(
    finished: Quantisers, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = changed(get_recipe("jacob-w8a8"), "jacob-w8a8", attention_bits=6)
    monkeypatch.setitem(RECIPES, "jacob-w8a8", other)
    missing = [(s.kind, s.name, s.steps()[0]) for s in finished.stages() if not s.done]
    assert missing[0] == ("quantize", "toy-jacob-w8a8-seed0", 0)


def test_figures_of_a_shorter_judgement_do_not_count(finished: Quantisers) -> None:
    longer = Quantisers(finished.config.model_copy(update={"rotations": 3}))
    assert {s.kind for s in longer.stages() if not s.done} == {"evaluate"}


def test_an_unknown_variant_is_named(finished: Quantisers) -> None:
    with pytest.raises(ConfigError, match="no variant 'lsk'"):
        Quantisers(finished.config.model_copy(update={"variants": ("lsk",)})).stages()


def test_every_named_quantiser_is_a_recipe() -> None:
    assert set(NAMES) == set(RECIPES) - {"w8a16", "bf16"}


def test_verdicts() -> None:
    assert judged((None, 1.0), confirmed=lambda x, y: True) == "not run"
    assert judged((1.0,), confirmed=lambda x: x < 2) == "confirmed"
    assert judged((3.0,), confirmed=lambda x: x < 2) == "not confirmed"
    assert better("confirmed", "not run") == "surpassed"
    assert better("not confirmed", "confirmed") == "confirmed"
    assert better("not run", "not confirmed") == "not confirmed"


def test_claims_are_judged_by_the_figures(
    finished: Quantisers, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = {claim.source: claim for claim in finished.claims()}
    assert {claim.verdict for claim in claims.values()} == {"not run"}
    assert claims["P1 IV.B b"].measured == "not run"


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_the_engine_is_timed_or_says_why_not(finished: Quantisers, tmp_path: Path) -> None:
    parent = Path(str(finished.config.parent))
    structure = small_structures(1)[0]
    timed = engine_times(parent, parent, structure, rounds=2, calls=2)
    assert timed["microseconds"] > 0
    jacob = finished.folder(Variant("jacob-w8a8", None), 0) / "model.safetensors"
    refused = engine_times(jacob, parent, structure, rounds=2)
    assert "jacob-w8a8" in refused["reason"]


def tiny() -> Any:
    torch.manual_seed(0)
    return build_network(EquivariantTransformerConfig.model_validate({**NETWORK, "layers": 2}))


@pytest.mark.parametrize("variant", Ablations.configured().known(), ids=lambda v: v.name)
def test_every_ablation_is_a_network(variant: Variant) -> None:
    if variant.recipe is None:
        return
    network = quantize_(tiny(), variant.recipe)
    recipe = resolved(variant.recipe)
    assert recipe.name == variant.name
    if variant.name.startswith("vectors-only"):
        assert all(isinstance(m, EquivariantLinear) for m in quantized_layers(network).values())
        assert quantized_layers(network)
    if variant.name.startswith("softmax"):
        assert variant.network[0] == "attention=softmax"


def test_ablations_have_names_of_their_own() -> None:
    names = [variant.name for variant in Ablations.configured().known()]
    assert len(set(names)) == len(names)


def test_ablations_run_whole_where_a_parent_is_trained_too(tmp_path: Path) -> None:
    training = tmp_path / "training.yaml"
    training.write_text(
        json.dumps({"data": {"dataset": "x"}, "network": NETWORK, "optimization": {"epochs": 1}})
    )
    experiment = Ablations.configured(
        quick=True,
        **settings(tmp_path, parent=None, training=training, variants="no-normalisation"),
    )
    experiment.run()
    report = experiment.report()
    assert report.missing == ()
    parent = experiment.parent_model(experiment.variants()[-1], 0)
    assert "robust_attention-false" in str(parent)
    assert load_network(parent)[0].config.robust_attention is False
    stray = report.tables[-1]
    assert [row[1] for row in stray.rows] == ["calibrated", "fine-tuned"]
    assert stray.columns == ("", "form", "layer 1")


def test_attention_strays_further_with_fewer_bits(tmp_path: Path) -> None:
    parent = small_model(tmp_path / "parent.safetensors")
    structures = small_structures(6)
    itself = attention_stray(parent, load_network(parent)[0].eval(), structures)
    assert itself == [{"rms": 0.0, "largest": 0.0}]
    found = []
    for bits in (8, 4):
        recipe = changed(get_recipe("paper-w8a8"), "x", attention_bits=bits)
        (layer,) = attention_stray(parent, calibrated_from(parent, recipe, structures), structures)
        found.append(layer["rms"])
    assert 0 < found[0] < 0.3 * found[1]


def test_a_table_without_measurements_says_so() -> None:
    assert stray_table({}).rows == (("all", "not run"),)
