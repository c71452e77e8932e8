"""Folders with data and a trained parent that tests of a session share."""

from __future__ import annotations

import pytest
from tests.training.toy import config

from equibit.training.run import TrainingResult, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A parent of 2 layers after twelve epochs."""
    folder = tmp_path_factory.mktemp("parent")
    settings = config(
        folder,
        network__layers=2,
        optimization__epochs=12,
        optimization__learning_rate=1e-2,
        run__validate_every=4,
    )
    return train(settings, progress=False)
