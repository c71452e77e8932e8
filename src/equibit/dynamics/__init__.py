"""Molecular dynamics in compiled code: no step of it passes through Python.

from equibit.dynamics import DynamicsSettings, run_dynamics
result = run_dynamics("ethanol-w4a8", structure, DynamicsSettings(steps=200_000), "runs/md")
print(result.drift.slope, "±", result.drift.error, "meV/atom/ps")
"""

from equibit.dynamics.run import Collapse, DynamicsResult, Outlook, foresee, run_dynamics
from equibit.dynamics.samples import Drift, Samples, energy_drift
from equibit.dynamics.settings import DynamicsSettings
from equibit.dynamics.start import Bonds, find_bonds, initial_velocities, temperature_of

__all__ = [
    "Bonds",
    "Collapse",
    "Drift",
    "DynamicsResult",
    "DynamicsSettings",
    "Outlook",
    "Samples",
    "energy_drift",
    "find_bonds",
    "foresee",
    "initial_velocities",
    "run_dynamics",
    "temperature_of",
]
