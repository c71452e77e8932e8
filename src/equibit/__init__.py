"""equibit: low-bit equivariant force fields that keep their symmetry.

The names below are all a script needs; each is imported, with the libraries it needs, when first
used::

    import equibit

    data = equibit.load_dataset("ethanol-pbe")
    model = equibit.load_potential("ethanol-w4a8")
    result = equibit.evaluate(model, data.subset("test"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equibit.datasets import Dataset as Dataset
    from equibit.datasets import load_dataset as load_dataset
    from equibit.dynamics import DynamicsSettings as DynamicsSettings
    from equibit.dynamics import run_dynamics as run_dynamics
    from equibit.evaluation.evaluate import Evaluation as Evaluation
    from equibit.evaluation.evaluate import evaluate as evaluate
    from equibit.evaluation.predict import predict_file as predict_file
    from equibit.evaluation.report import write_report as write_report
    from equibit.interfaces.ase import Calculator as Calculator
    from equibit.models import load_potential as load_potential
    from equibit.models import shipped_models as shipped_models
    from equibit.models.files import load_network as load_network
    from equibit.models.files import save_model as save_model
    from equibit.quantization.convert import calibrate as calibrate
    from equibit.quantization.convert import quantize_ as quantize_
    from equibit.quantization.recipes import Recipe as Recipe
    from equibit.quantization.recipes import get_recipe as get_recipe
    from equibit.structures import EquibitError as EquibitError
    from equibit.structures import Potential as Potential
    from equibit.structures import Prediction as Prediction
    from equibit.structures import Structure as Structure
    from equibit.structures.formats import iter_structures as iter_structures
    from equibit.structures.formats import read_structures as read_structures
    from equibit.structures.formats import write_structures as write_structures
    from equibit.training.config import TrainingConfig as TrainingConfig
    from equibit.training.config import load_config as load_config
    from equibit.training.qat import QuantizationConfig as QuantizationConfig
    from equibit.training.qat import quantize as quantize
    from equibit.training.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "Calculator": "equibit.interfaces.ase",
    "Dataset": "equibit.datasets",
    "DynamicsSettings": "equibit.dynamics",
    "EquibitError": "equibit.structures",
    "Evaluation": "equibit.evaluation.evaluate",
    "Potential": "equibit.structures",
    "Prediction": "equibit.structures",
    "QuantizationConfig": "equibit.training.qat",
    "Recipe": "equibit.quantization.recipes",
    "Structure": "equibit.structures",
    "TrainingConfig": "equibit.training.config",
    "calibrate": "equibit.quantization.convert",
    "evaluate": "equibit.evaluation.evaluate",
    "get_recipe": "equibit.quantization.recipes",
    "iter_structures": "equibit.structures.formats",
    "load_config": "equibit.training.config",
    "load_dataset": "equibit.datasets",
    "load_network": "equibit.models.files",
    "load_potential": "equibit.models",
    "predict_file": "equibit.evaluation.predict",
    "quantize": "equibit.training.qat",
    "quantize_": "equibit.quantization.convert",
    "read_structures": "equibit.structures.formats",
    "run_dynamics": "equibit.dynamics",
    "save_model": "equibit.models.files",
    "shipped_models": "equibit.models",
    "train": "equibit.training.run",
    "write_report": "equibit.evaluation.report",
    "write_structures": "equibit.structures.formats",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'equibit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
