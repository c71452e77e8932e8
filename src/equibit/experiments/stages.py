"""What experiments share: stages that are skipped once done, and how they tell what they do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from equibit.evaluation.batches import Progress, silent
from equibit.evaluation.evaluate import Evaluation
from equibit.models import resolve_model
from equibit.storage.atomic import atomic_text
from equibit.storage.checksum import file_sha256
from equibit.training.config import TrainingConfig
from equibit.training.qat import QuantizationConfig
from equibit.training.run import MODEL, describe, finished_run, parent_record

Say = Callable[[str], None]
"""Called with one line when something begins or is found done."""

ProgressFactory = Callable[[], AbstractContextManager[Progress]]
"""Opens the bars of one evaluation; training draws its own, and two displays would collide."""

# Numbers per structure or per code: in the report's own JSON, too long to keep in a repository.
_LONG = ("energy_errors", "force_mae", "force_maximum", "edges")


def mute(message: str) -> None:
    """The ``Say`` that says nothing."""


@contextlib.contextmanager
def no_bars() -> Iterator[Progress]:
    """The ``ProgressFactory`` without bars."""
    yield silent


def model_of(settings: TrainingConfig | QuantizationConfig) -> Path:
    """The model file that a run writes."""
    return settings.run.output / MODEL


def is_finished(settings: TrainingConfig | QuantizationConfig) -> bool:
    """Whether a run has ended, from the parent that is there now.

    Raises:
        ConfigError: the folder holds a run of another configuration.
        ModelError: there is no parent.
    """
    if isinstance(settings, QuantizationConfig):
        if parent_changed(settings):
            return False
        name: str | None = settings.parent
    else:
        name = settings.start
    parent = None if name is None else parent_record(name)
    return finished_run(describe(settings), settings.run.output, parent=parent) is not None


def parent_changed(settings: QuantizationConfig) -> bool:
    """Whether a run began from another version of its parent, and so must start afresh.

    A finished run knows the digest of its parent; of an unfinished one the dates decide.
    """
    folder, parent = settings.run.output, resolve_model(settings.parent)
    try:
        record = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["training"]
        return bool(record["parent"]["sha256"] != file_sha256(parent))
    except (OSError, ValueError, KeyError, TypeError):
        begun = folder / "config.yaml"
        return begun.is_file() and parent.stat().st_mtime > begun.stat().st_mtime


def read_evaluation(path: Path, model: Path) -> dict[str, Any] | None:
    """The evaluation in a JSON file, or None where it is missing or of another model file."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(plain, dict) or plain.get("model_sha256") != file_sha256(model):
        return None
    return plain


def write_evaluation(
    path: Path,
    evaluation: Evaluation,
    model: Path,
    *,
    brief: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an evaluation with the digest of its model file and return what was written.

    Args:
        path: JSON file; missing folders are made.
        evaluation: what to write.
        model: the file it is about.
        brief: leave out numbers per structure and per code.
        extra: more keys, before those of the evaluation.
    """
    plain = evaluation.to_json()
    if brief:
        plain = _without_long(plain)
        plain.pop("codes")
    plain = {"model_sha256": file_sha256(model), **(extra or {}), **plain}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(path) as file:
        json.dump(plain, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return plain


def _without_long(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_long(item) for key, item in value.items() if key not in _LONG}
    if isinstance(value, list):
        return [_without_long(item) for item in value]
    return value
