"""The same network run by PyTorch, and by what else runs it where that is installed."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from equibit.models.files import load_potential
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import (
    Batch,
    atomic_energies,
    build_graph,
    energies_and_edge_gradients,
    orient,
)
from equibit.structures.structure import Structure

Call = Callable[[], object]


def torch_calls(model: Path, structure: Structure, *, compiled: bool) -> dict[str, Call]:
    """Eager and compiled PyTorch, the graph of neighbours made beforehand; and the whole call."""
    potential = load_potential(model)
    network, batch = potential.network, _batch(potential.network, structure)
    calls: dict[str, Call] = {
        "torch eager|energy": lambda: _energies(network, batch),
        "torch eager|forces": lambda: energies_and_edge_gradients(network, batch),
        "torch eager|compute": lambda: potential.compute([structure]),
    }
    if compiled:
        energies = torch.compile(_energies, dynamic=False)
        gradients = torch.compile(energies_and_edge_gradients, dynamic=False)
        calls["torch compiled|energy"] = lambda: energies(network, batch)
        calls["torch compiled|forces"] = lambda: gradients(network, batch)
    return calls


def peer_calls(
    model: Path, structure: Structure, threads: int
) -> tuple[dict[str, Call], dict[str, str]]:
    """Energies by ONNX Runtime and torchao, and why those missing are missing."""
    network = load_potential(model).network
    batch = _batch(network, structure)
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    for name, make in (
        ("onnxruntime fp32", lambda: _onnx(network, batch, threads)),
        ("torchao int8", lambda: _torchao(network, batch, bits=8)),
        ("torchao int8-int4", lambda: _torchao(network, batch, bits=4)),
    ):
        try:
            with _quiet():
                calls[f"{name}|energy"] = make()
        except Exception as error:  # whatever a foreign library does, the others are still timed
            first_line = str(error).strip().partition("\n")[0]
            skipped[name] = f"{type(error).__name__}: {first_line[:200]}"
    return calls, skipped


def _batch(network: AtomisticNetwork, structure: Structure) -> Batch:
    graph, vectors = build_graph([structure], network.config.elements, network.config.cutoff)
    return orient(network, graph, vectors)


@torch.no_grad()
def _energies(network: AtomisticNetwork, batch: Batch) -> torch.Tensor:
    return atomic_energies(network, batch, batch.edge_vectors)


class _OfVectors(torch.nn.Module):
    """Atomic energies as a function of the edge vectors of one graph."""

    def __init__(self, network: AtomisticNetwork, batch: Batch) -> None:
        super().__init__()
        self.network = network
        self.batch = batch

    def forward(self, edge_vectors: torch.Tensor) -> torch.Tensor:
        return atomic_energies(self.network, self.batch, edge_vectors)


def _onnx(network: AtomisticNetwork, batch: Batch, threads: int) -> Call:
    import onnxruntime

    program = torch.onnx.export(
        _OfVectors(network, batch), (batch.edge_vectors,), dynamo=True, verbose=False
    )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {session.get_inputs()[0].name: batch.edge_vectors.numpy()}
    (energies,) = session.run(None, inputs)
    expected = _energies(network, batch).numpy()
    if abs(energies - expected).max() > 1e-4:
        raise ValueError("its energies are not the network's")
    return lambda: session.run(None, inputs)


def _torchao(network: AtomisticNetwork, batch: Batch, *, bits: int) -> Call:
    from torchao import quantization

    config: Any
    if bits == 8:
        config = quantization.Int8DynamicActivationInt8WeightConfig()
    else:
        config = quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009 - unknown to the type checker
            weight_granularity=quantization.PerGroup(32),
        )
    rounded = copy.deepcopy(network)
    quantization.quantize_(rounded, config)
    return lambda: _energies(rounded, batch)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk a lot."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
