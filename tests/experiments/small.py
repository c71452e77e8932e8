"""A network and data small enough that whole experiments take seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from equibit.models.files import save_model
from equibit.networks.equivariant_transformer import EquivariantTransformerConfig
from equibit.networks.registry import build_network
from equibit.structures import Structure
from equibit.structures.formats import write_structures

NETWORK = {
    "architecture": "equivariant_transformer",
    "elements": [1, 6, 8],
    "irreps": "8x0e+8x1o",
    "layers": 1,
    "heads": 2,
}


def small_model(path: Path, name: str = "small", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = build_network(EquivariantTransformerConfig.model_validate(NETWORK))
    network.set_scale_shift([1.0] * 3, [-1.0] * 3)
    save_model(path, network, name=name, training={"dataset": "toy", "labels": "toy", "seed": 0})
    return path


def small_structures(count: int) -> list[Structure]:
    """Shaken water-like triatomics with labels of a harmonic toy."""
    rng = np.random.default_rng(0)
    rest = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    structures = []
    for _ in range(count):
        shift = 0.05 * rng.standard_normal((3, 3))
        shift -= shift.mean(axis=0)
        energy = float((shift**2).sum())
        structures.append(
            Structure(
                numbers=np.array([8, 1, 1]),
                positions=rest + shift,
                energy=energy,
                forces=-2 * shift,
            )
        )
    return structures


def small_data(path: Path, count: int = 40) -> Path:
    write_structures(path, small_structures(count))
    return path


def small_rmd17(root: Path, n_train: int = 40, n_test: int = 10, molecule: str = "ethanol") -> Path:
    """A folder of data sets with an rMD17 file of that many structures, MD17 labels included."""
    structures = small_structures(n_train + n_test)
    kcal = 23.060547830619026
    energies = np.array([s.energy for s in structures]) * kcal
    forces = np.stack([s.forces for s in structures]) * kcal
    folder = root / "rmd17"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"rmd17_{molecule}.npz",
        nuclear_charges=structures[0].numbers,
        coords=np.stack([s.positions for s in structures]),
        energies=energies,
        forces=forces,
        train_idx_01=np.arange(n_train),
        test_idx_01=np.arange(n_train, n_train + n_test),
        md17_energies_split01=1.01 * energies,
        md17_forces_split01=1.01 * forces,
    )
    return root


def small_qm9(root: Path, count: int = 50) -> Path:
    """A folder of data sets with a QM9 file of that many waters and hydroxyls, without forces."""
    structures = small_structures(count)
    sizes = [3 if k % 2 else 2 for k in range(count)]
    pairs = list(zip(structures, sizes, strict=True))
    folder = root / "qm9"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "qm9_chno.npz",
        n_atoms=np.array(sizes),
        z=np.concatenate([s.numbers[:n] for s, n in pairs]),
        pos=np.concatenate([s.positions[:n] for s, n in pairs]),
        e_elec_b3lyp_ha=np.array([(s.energy or 0.0) / 27.2 - 75.0 - 0.6 * n for s, n in pairs]),
    )
    return root
