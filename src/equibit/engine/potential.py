"""The ``Potential`` face of the compiled engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from equibit.models.shipped import resolve_model
from equibit.structures.checks import check_cells, species_index
from equibit.structures.errors import EquibitError, FileFormatError, ModelError, StructureError
from equibit.structures.potential import Potential, PotentialInfo, Prediction
from equibit.structures.structure import MAX_ATOMIC_NUMBER, Structure

# What `arithmetic` of the compiled networks says nothing of; the same for all kernels.
_BETWEEN_PRODUCTS = [
    ("embedding, norms, activations, gates", "float32", "float32"),
    ("attention, messages, products of vectors, unless named above", "float32", "float32"),
    ("neighbours, distances, splines, harmonics, axes of frames", "float64", "float64"),
    ("sums over atoms and pairs", "float64", "float64"),
]
_SHARED = 200  # atoms from which threads share one structure


@cache
def _native() -> ModuleType | None:
    try:
        from equibit.engine import _native as module  # type: ignore[attr-defined]
    except ImportError:
        return None
    return module


def _required() -> ModuleType:
    module = _native()
    if module is None:
        raise ModelError(
            "the compiled engine is missing: install equibit with a C++20 compiler at hand "
            "(`pip install .` in a checkout), or compute with torch (equibit.load_potential)"
        )
    return module


def is_built() -> bool:
    """Whether the compiled module can be imported."""
    return _native() is not None


def supports(name_or_path: str | Path) -> bool:
    """Whether ``load`` would give a potential: the engine is built and runs this model.

    Raises:
        ModelError: no such model.
        FileFormatError: damaged, foreign, newer or inconsistent file.
    """
    if not is_built():
        return False
    try:
        load(name_or_path)
    except ModelError:
        return False
    return True


def load(
    name_or_path: str | Path, *, kernels: str | None = None, threads: int = 1
) -> NativePotential:
    """A shipped model or a model file as a potential run by the engine.

    Args:
        name_or_path: shipped name, model file, or the folder of a finished run.
        kernels: instruction set by name, one of ``kernel_names()``; None for the fastest.
        threads: that share batches of structures, and structures of more than a few hundred atoms.
            No bit of a result depends on it.

    Raises:
        ModelError: no such model, a network or recipe that the engine does not run, or no engine.
        FileFormatError: damaged, foreign, newer or inconsistent file.
    """
    native, path = _required(), resolve_model(name_or_path)
    if kernels is not None and kernels not in kernel_names():
        raise ModelError(
            f"this processor has no kernels named {kernels}; known are {', '.join(kernel_names())}"
        )
    try:
        model = native.load(os.fspath(path), kernels)
    except native.UnsupportedModel as error:
        raise ModelError(f"{path}: {error}: compute with torch (equibit.load_potential)") from error
    except (native.FileFault, native.ModelFault) as error:
        raise FileFormatError(f"{path}: {error}") from error
    return NativePotential(model, threads=threads, source=(os.fspath(path.resolve()), kernels))


def load_preferred(
    name_or_path: str | os.PathLike[str], *, dtype: str | None = None, threads: int = 1
) -> Potential:
    """The engine where it runs the model, torch otherwise; torch is imported only then.

    Args:
        name_or_path: shipped name, model file, or the folder of a finished run.
        dtype: ``float64`` arithmetic is torch's; None and ``float32`` are the engine's.
        threads: of the engine, see ``load``; torch has its own setting.

    Raises:
        ModelError: no such model, another dtype, or neither the engine nor torch is installed.
        FileFormatError: damaged, foreign, newer or inconsistent file.
    """
    path = resolve_model(Path(name_or_path))
    if dtype not in (None, "float32", "float64"):
        raise ModelError(f"dtype is {dtype!r}; expected float32 or float64")
    reason = "float64 arithmetic"
    if dtype in (None, "float32"):
        try:
            return load(path, threads=threads)
        except ModelError as error:
            reason = str(error)
    from equibit.models import load_potential

    try:
        potential: Potential = load_potential(path, dtype=dtype)
    except ImportError as error:
        raise ModelError(
            f'{path} needs torch ({reason}), which is not installed: pip install "equibit[train]"'
        ) from error
    return potential


def kernel_names() -> list[str]:
    """Instruction sets that this processor can run, fastest first."""
    return list(_required().kernel_names())


class NativePotential:
    """A model run by compiled code: float32 or low-bit arithmetic, geometry in float64.

    Calls release the interpreter lock, may come from several threads at once, and give the same
    bits whatever else is in the batch.

    Args:
        model: of compiled code; see ``load``.
        threads: that share batches and large systems.
        source: file and kernels that ``load`` was given; a pickle is these, and the file is read
            again where it is unpickled. Copies share the model, which nothing changes.

    Attributes:
        name: what reports call it.
        kernels: the instruction set in use.
        threads: see ``load``.
        faults: what compiled code throws for a bad structure; see ``explained``.
    """

    def __init__(
        self, model: Any, *, threads: int = 1, source: tuple[str, str | None] | None = None
    ) -> None:
        if threads < 1:
            raise ModelError(f"threads is {threads}; expected 1 or more")
        native = _required()
        self._network = model
        self._species = np.full(MAX_ATOMIC_NUMBER + 1, -1, np.int32)  # by atomic number
        self._species[list(model.elements)] = np.arange(len(model.elements))
        self._info = PotentialInfo(
            model.name, tuple(model.elements), model.cutoff, "float32", model.recipe
        )
        self._native = native
        self._source = source
        self.faults = (native.StructureFault, native.Coincidence, native.NotFinite)
        self.kernels = str(model.kernels)
        self.threads = threads

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def info(self) -> PotentialInfo:
        return self._info

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        """See ``Potential.compute``.

        Raises:
            ModelError: an element the model never saw; or a result that is not finite, from a
                damaged model or from atoms in impossible places.
            StructureError: coinciding atoms, or stress asked of a structure without a 3-D cell.
        """
        if stress:
            check_cells(structures)
        if self.threads == 1 or len(structures) == 1:
            return [self._compute_one(s, forces, stress, self.threads) for s in structures]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda s: self._compute_one(s, forces, stress, 1), structures))

    def _compute_one(
        self, structure: Structure, forces: bool, stress: bool, threads: int
    ) -> Prediction:
        species = self._species[structure.numbers]
        if species.min() < 0:
            species_index(structure, self._info.elements)  # says which atom is unknown
        gradients = forces or stress
        try:
            energies, force, virial = self._network.compute(
                species,
                np.ascontiguousarray(structure.positions),
                None if structure.cell is None else np.ascontiguousarray(structure.cell),
                structure.pbc.tolist(),
                gradients,
                threads if len(structure) >= _SHARED else 1,
            )
        except self.faults as fault:
            raise self.explained(fault) from None
        return Prediction(
            float(energies.sum()),
            energies,
            force if forces else None,
            _stress(structure, virial) if stress else None,
        )

    @property
    def arithmetic(self) -> list[tuple[str, str, str]]:
        """In what numbers parts of the model run on these kernels, and their reverse, in words.

        Every matrix product by its layers, then what lies between them.
        """
        return [*self._network.arithmetic, *_BETWEEN_PRODUCTS]

    @property
    def compiled(self) -> Any:
        """The network as compiled code knows it, for loops that run there."""
        return self._network

    def explained(self, fault: Exception) -> EquibitError:
        """What compiled code found wrong, as an error of this package."""
        if isinstance(fault, self._native.NotFinite):
            return ModelError(
                "the energy or a force is not a finite number: the atoms are far outside what the "
                "model was trained on, or its weights are damaged"
            )
        return StructureError(str(fault))

    def __deepcopy__(self, memo: dict[int, Any]) -> NativePotential:
        return self

    def __copy__(self) -> NativePotential:
        return self

    def __reduce__(self) -> Any:
        if self._source is None:
            raise TypeError("this NativePotential has no file to be pickled as: see engine.load")
        return _load_again, (*self._source, self.threads)


def _load_again(path: str, kernels: str | None, threads: int) -> NativePotential:
    return load(path, kernels=kernels, threads=threads)


def _stress(structure: Structure, virial: np.ndarray) -> np.ndarray:
    assert structure.cell is not None
    stress: np.ndarray = virial / abs(np.linalg.det(structure.cell))
    return stress
