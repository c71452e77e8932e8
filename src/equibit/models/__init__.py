"""Model files: the shipped ones by name, your own by path."""

from equibit.models.shipped import resolve_model, shipped_models

__all__ = ["load_potential", "resolve_model", "shipped_models"]


def load_potential(name_or_path, *, dtype=None, device="cpu", canonical_orientation=True):  # type: ignore[no-untyped-def]
    """A ``Potential`` from a shipped model's name or a file; see ``models.files.load_potential``."""
    from equibit.models.files import load_potential as load

    return load(
        name_or_path, dtype=dtype, device=device, canonical_orientation=canonical_orientation
    )
