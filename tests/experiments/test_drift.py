"""Contenders of a drift table, and the lines of its figure."""

from __future__ import annotations

import pytest

from equibit.experiments.drift import Contender, contender, file_name
from equibit.structures import ConfigError


def test_contenders_are_models_or_pairs_of_them() -> None:
    assert contender("ethanol-w4a8") == Contender("ethanol-w4a8", "ethanol-w4a8")
    assert contender("a+b/4") == Contender("a+b/4", "a", "b", 4)
    assert contender("runs/a+runs/b/4") == Contender("runs/a+runs/b/4", "runs/a", "runs/b", 4)
    for text in ("a+b", "a+b/0", "+b/4"):
        with pytest.raises(ConfigError, match="no contender"):
            contender(text)


def test_a_path_becomes_one_file_name() -> None:
    assert file_name("../runs/mine+ethanol-fp32/4") == ".._runs_mine_ethanol-fp32_4"
