"""The cost experiment, small; and its exponents, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from equibit import engine
from equibit.experiments.cost import Cost, CostConfig, _claims, exponent
from equibit.structures import ConfigError


def test_exponents_by_hand() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    slope, error = exponent(sizes, [3 * x**1.5 for x in sizes])
    assert slope == pytest.approx(1.5)
    assert error == pytest.approx(0, abs=1e-9)
    # Residuals of ±ln 1.1 at four equal steps: se² = 4 (ln 1.1)² / 2 / (5 (ln 2)²).
    slope, error = exponent(sizes, [x * f for x, f in zip(sizes, (1.1, 1 / 1.1, 1 / 1.1, 1.1), strict=True)])  # fmt: skip
    assert slope == pytest.approx(1.0)
    assert error == pytest.approx((2 / 5) ** 0.5 * math.log(1.1) / math.log(2))
    assert exponent([1, 10], [1, 100]) == (pytest.approx(2.0), None)


def test_irreps_of_a_sweep() -> None:
    config = CostConfig()
    assert config.network() == "64x0e+64x1o"
    assert config.network(channels=16, degree=3) == "16x0e+16x1o+16x2e+16x3o"


def test_claims_are_judged_by_ratios() -> None:
    times = {"fp32": 10.0, "w8a8": 2.5, "w4a8": 2.0}
    found = {"bits": {"ethanol": times, "water": times}}
    verdicts = {claim.text: claim.verdict for claim in _claims(found, CostConfig())}
    assert verdicts["w8a8 is faster than FP32 by about 32/k"] == "confirmed"
    assert verdicts["w4a8 is faster than FP32 by about 32/k"] == "not confirmed"
    assert verdicts["time grows linearly with n"] == "not run"


def test_recipes_are_checked() -> None:
    with pytest.raises(ConfigError, match="w4a9"):
        Cost.configured(bits="fp32,w4a9")


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_from_times_to_report(tmp_path: Path) -> None:
    given = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    experiment = Cost.configured(quick=True, models="ethanol-fp32,ethanol-w4a8", **given)
    experiment.run()
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["missing"] == []
    assert report["claims"] == []
    assert [point["size"] for point in report["data"]["atoms"]] == [24, 81]
    assert [point["size"] for point in report["data"]["degree"]] == [4, 9]
    small, large = (point["microseconds"]["fp32"] for point in report["data"]["atoms"])
    assert 1.5 < large / small < 40
    tables = {table["title"]: table["rows"] for table in report["tables"]}
    low = tables["Accuracy, speed and size on ethanol"][1]
    assert float(low[-1].rstrip("×")) > 5
    assert [row[0] for row in tables["Against bits"]] == ["fp32", "w8a8"]
    assert (tmp_path / "results.png").read_bytes()[:4] == b"\x89PNG"
