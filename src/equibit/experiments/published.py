"""Figures of the papers and of the records, as published; none of them was measured here.

Energies in meV, forces in meV/Å. ``[P1]`` is "Quantized SO(3)-Equivariant Graph Neural Networks for
Efficient Molecular Property Prediction".
"""

from __future__ import annotations

# [P1] Table II: MD17 labels, 1,000 training structures.
TABLE_TWO_NETWORKS = (
    "NequIP", "SpookyNet", "DimeNet", "PaiNN", "NewtonNet", "So3krates", "W4A8 of the paper"
)  # fmt: skip
TABLE_TWO: dict[str, tuple[tuple[float, float], ...]] = {
    "aspirin": ((5.64, 8.24), (6.55, 11.19), (8.85, 21.64), (6.89, 16.09), (7.28, 15.09),
                (6.03, 10.23), (4.87, 11.5)),
    "ethanol": ((2.17, 3.90), (2.25, 4.08), (2.78, 9.97), (2.73, 9.97), (2.64, 9.15),
                (2.25, 4.16), (1.74, 4.21)),
    "malonaldehyde": ((3.47, 5.64), (3.43, 7.24), (4.51, 16.61), (3.95, 13.83), (4.16, 14.01),
                      (3.34, 6.37), (2.57, 6.53)),
    "naphthalene": ((4.77, 1.73), (5.03, 3.86), (5.29, 9.32), (5.07, 3.60), (5.12, 3.64),
                    (4.99, 3.21), (3.84, 3.26)),
    "salicylic": ((4.77, 3.90), (4.94, 7.80), (5.81, 16.22), (4.94, 9.06), (4.99, 8.54),
                  (4.60, 6.29), (3.54, 6.75)),
    "toluene": ((3.90, 2.17), (4.08, 3.77), (4.42, 9.37), (4.21, 4.42), (4.08, 3.82),
                (4.12, 3.17), (3.24, 3.26)),
    "uracil": ((4.34, 3.47), (4.55, 5.16), (4.99, 13.05), (4.51, 6.07), (4.64, 6.46),
               (4.47, 4.81), (3.51, 5.19)),
}  # fmt: skip

# MACE on rMD17, 1,000 training structures (Batatia et al. 2022).
MACE_RMD17: dict[str, tuple[float, float]] = {
    "aspirin": (2.2, 6.6),
    "azobenzene": (1.2, 3.0),
    "benzene": (0.4, 0.3),
    "ethanol": (0.4, 2.1),
    "malonaldehyde": (0.8, 4.1),
    "naphthalene": (0.5, 1.6),
    "paracetamol": (1.3, 4.8),
    "salicylic": (0.9, 3.1),
    "toluene": (0.5, 1.5),
    "uracil": (0.5, 2.1),
}
