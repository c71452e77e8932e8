"""The engine's own tests, under AddressSanitizer and UBSan: minutes of compiling."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_native_tests_pass_under_the_sanitizers(tmp_path: Path) -> None:
    done = subprocess.run(
        [CHECKOUT / "scripts" / "check_native.sh", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
