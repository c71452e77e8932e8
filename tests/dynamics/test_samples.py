"""The drift and its error bar, on series whose slope is known."""

from __future__ import annotations

import numpy as np
import pytest

from equibit.dynamics import energy_drift


def wandering(generator: np.random.Generator, n: int, memory: float) -> np.ndarray:
    """Correlated noise of unit variance."""
    keep = np.exp(-1 / memory)
    noise = generator.standard_normal(n)
    series = np.empty(n)
    series[0] = noise[0]
    for k in range(1, n):
        series[k] = keep * series[k - 1] + np.sqrt(1 - keep**2) * noise[k]
    return series


def test_a_straight_line_is_found_exactly() -> None:
    time = np.arange(200) * 0.05
    drift = energy_drift(time, -4000.0 + 2e-3 * time, n_atoms=4)
    assert drift.slope == pytest.approx(0.5)
    assert drift.error == pytest.approx(0.0, abs=1e-6)


def test_the_error_bar_covers_correlated_noise() -> None:
    generator = np.random.default_rng(0)
    time = np.arange(2000) * 0.05
    drifts = [
        energy_drift(time, 1e-3 * wandering(generator, 2000, 10.0) + 5e-4 * time, 1)
        for _ in range(200)
    ]
    scores = np.array([(drift.slope - 0.5) / drift.error for drift in drifts])
    # Student's t with 18 degrees of freedom, a little wider for what memory is left.
    assert 0.85 < scores.std() < 1.35
    assert abs(scores.mean()) < 0.3


def test_short_runs_have_no_error_bar() -> None:
    assert energy_drift(np.arange(2.0), np.arange(2.0), 1).error is None
    short = energy_drift(np.arange(10.0), 1e-3 * np.arange(10.0), 1)
    assert short.slope == pytest.approx(1.0)
    assert short.error is None
