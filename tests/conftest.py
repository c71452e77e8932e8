"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# One core per worker, before any test imports torch: workers would otherwise fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Two busy cores make single examples slow now and then; a deadline would only flake.
settings.register_profile("equibit", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("equibit")

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder with rmd17, qm9, so3krates_reference and others; skips the test when absent."""
    named = os.environ.get("EQUIBIT_DATA")
    root = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no reference data at {root}: point EQUIBIT_DATA at the folder with rmd17/")
    return root
