"""Where models are: shipped in the package under a name, or anywhere under a path. Torch-free."""

from __future__ import annotations

from pathlib import Path

from equibit.structures.errors import ModelError

_FOLDER = Path(__file__).parent / "files"
SUFFIX = ".safetensors"
CARD_SUFFIX = ".md"


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.name.removesuffix(SUFFIX) for path in _FOLDER.glob(f"*{SUFFIX}"))


def shipped_file(name: str) -> Path:
    """Where a shipped model is, for one of the names that ``shipped_models`` lists."""
    return _FOLDER / f"{name}{SUFFIX}"


def resolve_model(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name or of a path.

    Raises:
        ModelError: neither a shipped name nor an existing file.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir() and (path / f"model{SUFFIX}").is_file():
        return path / f"model{SUFFIX}"
    names = shipped_models()
    if str(name_or_path) in names:
        return shipped_file(str(name_or_path))
    import difflib

    close = difflib.get_close_matches(str(name_or_path), names, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise ModelError(
        f"there is no model {name_or_path}{hint} Give a path to a model file or one of the shipped "
        f"names: {', '.join(names) or 'none in this installation'}"
    )
