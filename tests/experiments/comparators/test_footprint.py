from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from equibit.experiments.comparators.footprint import (
    footprint,
    import_seconds,
    installed_bytes,
    own_footprint,
    requirements,
)


def test_what_a_package_needs_is_followed_to_the_end() -> None:
    needed = requirements("typer")
    assert {"typer", "rich", "pygments", "markdown-it-py", "mdurl"} <= needed
    assert "torch" not in needed
    assert requirements("no-such-package") == set()


def test_bytes_and_seconds() -> None:
    found = footprint("pyyaml", "yaml", repeats=1)
    assert found.own_megabytes == pytest.approx(installed_bytes("pyyaml") / 1e6)
    assert 0.1 < found.own_megabytes < 20
    assert found.all_megabytes == found.own_megabytes
    assert found.import_seconds is not None
    assert 0 < found.import_seconds < 60
    with pytest.raises(PackageNotFoundError):
        footprint("no-such-package", "no_such_package")


def test_a_module_that_is_not_there() -> None:
    assert import_seconds("no_such_module_anywhere", repeats=1) is None


def test_equibit_counts_what_running_models_needs() -> None:
    own = own_footprint(repeats=1)
    assert own.own_megabytes > 1
    assert own.all_megabytes > own.own_megabytes + installed_bytes("numpy") / 1e6
    assert own.all_megabytes < installed_bytes("torch") / 1e6
