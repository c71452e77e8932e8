"""What every potential must do, inherited by one test class per implementation.

    class TestMyPotential(PotentialContract):
        @pytest.fixture(scope="class")
        @classmethod
        def potential(cls, dtype: str) -> Potential:
            return ...

The checks are those of ``equibit.evaluation.validation``; each is one test for each dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from equibit.evaluation.validation import CHECKS, probe, run_check
from equibit.structures import Potential


class PotentialContract:
    """Runs every check on the fixture ``potential``.

    Attributes:
        dtypes: arithmetics to test; fixtures and tests get one after the other as ``dtype``.
        skips: checks that cannot hold, with the reason, e.g. ``validation.STAIRCASE``.
        tolerance: relative; None for 1e-10 in float64 and 1e-5 in float32.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float64", "float32")
    skips: ClassVar[Mapping[str, str]] = MappingProxyType({})
    tolerance: ClassVar[float | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", self.dtypes, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str) -> Potential:
        raise NotImplementedError(f"{cls.__name__} must define the fixture `potential`")

    @pytest.fixture(scope="class")
    @classmethod
    def probes(cls, potential: Potential, dtype: str) -> Any:
        assert potential.info.dtype == dtype
        return probe(potential, tolerance=cls.tolerance)

    @pytest.mark.parametrize("check", CHECKS)
    def test_keeps_its_promise(self, check: str, probes: Any) -> None:
        if check in self.skips:
            pytest.skip(self.skips[check])
        result = run_check(check, probes)
        assert result.outcome == "passed", (
            f"{result.claim}: {result.detail} "
            f"(deviation {result.deviation}, tolerance {result.tolerance})"
        )

    def test_is_a_potential(self, potential: Potential) -> None:
        assert isinstance(potential, Potential)
        assert list(potential.info.elements) == sorted(set(potential.info.elements))
