"""The native engine: energies, forces and stresses on a CPU, without torch.

from equibit.engine import load
potential = load("ethanol-w4a8")
prediction, = potential.compute([structure])
"""

from equibit.engine.potential import (
    NativePotential,
    is_built,
    kernel_names,
    load,
    load_preferred,
    supports,
)

__all__ = ["NativePotential", "is_built", "kernel_names", "load", "load_preferred", "supports"]
