"""Judging potentials: accuracy, symmetry, conservation, latency and size."""

from equibit.evaluation.equivariance import (
    Equivariance,
    LieDerivative,
    haar_rotations,
    lie_derivative,
    measure_equivariance,
)
from equibit.evaluation.evaluate import Evaluation, evaluate
from equibit.evaluation.latency import Latency, measure_latency
from equibit.evaluation.metrics import Answers, Comparison, compare, net_statistics
from equibit.evaluation.size import CodeUse, ModelSize, PartSize, model_size

__all__ = [
    "Answers",
    "CodeUse",
    "Comparison",
    "Equivariance",
    "Evaluation",
    "Latency",
    "LieDerivative",
    "ModelSize",
    "PartSize",
    "compare",
    "evaluate",
    "haar_rotations",
    "lie_derivative",
    "measure_equivariance",
    "measure_latency",
    "model_size",
    "net_statistics",
]
