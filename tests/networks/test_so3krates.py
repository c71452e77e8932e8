"""So3krates against the public reference implementation, number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.potential_contract import PotentialContract

from equibit.evaluation.validation import probe, probe_molecules, run_check
from equibit.networks.context import Context
from equibit.networks.geometry import edge_geometry
from equibit.networks.graph import DenseGraph, Graph, SparseGraph
from equibit.networks.potential import (
    Batch,
    TorchPotential,
    atomic_energies,
    build_graph,
    energies_and_edge_gradients,
)
from equibit.networks.so3krates import So3krates, So3kratesConfig, exponential_gaussians
from equibit.structures import Potential

Reference = dict[str, np.ndarray]

FRAGMENTS = ["frag3", "frag2", "pair_4p9", "pair_far"]
MOLECULES = [f"{name}_{k}" for name in ("ethanol", "aspirin") for k in range(5)]

with_intermediates = pytest.mark.parametrize(
    ("reference", "name"),
    [("A", "ethanol_0"), ("B", "ethanol_0"), ("B", "aspirin_0")],
    indirect=["reference"],
)


@pytest.fixture(scope="module", params=["A", "B"])
def reference(request: pytest.FixtureRequest, reference_data: Path) -> Reference:
    path = reference_data / "so3krates_reference" / f"so3krates_reference_{request.param}.npz"
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def network(reference: Reference) -> So3krates:
    return load_reference_parameters(reference)


def load_reference_parameters(reference: Reference) -> So3krates:
    """The network that the reference values were computed with, in float64."""
    stored = json.loads(str(reference["config_json"]))
    config = So3kratesConfig(
        elements=(1, 6, 8),
        features=stored["F"],
        layers=stored["n_layer"],
        heads=stored["H"],
        degrees=tuple(stored["degrees"]),
        radial_basis=stored["n_rbf"],
        cutoff=stored["r_cut"],
    )
    network = So3krates(config).double()
    unused = {name.removeprefix("param.") for name in reference if name.startswith("param.")}

    def take(name: str) -> np.ndarray:
        unused.remove(name)
        return reference[f"param.{name}"]

    def dense(name: str) -> dict[str, np.ndarray]:
        """A flax kernel is in × out, a torch weight out × in; MLP_r and MLP_s carry a unit axis."""
        kernel, bias = take(f"{name}.kernel"), take(f"{name}.bias")
        return {"weight": kernel.reshape(kernel.shape[-2:]).T, "bias": bias.reshape(-1)}

    values: dict[str, np.ndarray] = {
        "embedding.weight": take("feature_embeddings_0.Embed_0.embedding")[list(config.elements)]
    }

    def put(prefix: str, entries: dict[str, np.ndarray]) -> None:
        values.update({f"{prefix}.{key}": entry for key, entry in entries.items()})

    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"layers_{layer}"
        for branch, block in (("invariant", "FeatureBlock_0"), ("equivariant", "GeometricBlock_0")):
            for mlp, flax in (("radial", "VmapMLP_0"), ("spherical", "VmapMLP_1")):
                for half, flax_half in (("first", "layers_0"), ("second", "layers_1")):
                    put(
                        f"{ours}.{branch}_filter.{mlp}.{half}",
                        dense(f"{theirs}.{block}.filter_fn.{flax}.{flax_half}"),
                    )
            coefficients = f"{theirs}.{block}.attention_fn.VmapConvAttentionCoefficients_0"
            for product, flax in (("query", "Dense_0"), ("key", "Dense_1")):
                kernel = take(f"{coefficients}.{flax}.kernel")
                put(f"{ours}.{branch}_attention.{product}", {"weight": kernel.swapaxes(1, 2)})
        aggregation = f"{theirs}.FeatureBlock_0.attention_fn.VmapAttentionAggregation_0"
        put(f"{ours}.value", {"weight": take(f"{aggregation}.Dense_0.kernel").swapaxes(1, 2)})
        put(f"{ours}.interaction", dense(f"{theirs}.InteractionBlock_0.MLP_0.layers_0"))
    put("head.first", dense("observables_0.MLP_0.layers_0"))
    put("head.second", dense("observables_0.MLP_0.layers_1"))
    assert not unused, f"reference parameters without a place: {sorted(unused)}"

    state = dict(network.state_dict())
    missing = {name for name, _ in network.named_parameters()} - values.keys()
    assert not missing, f"parameters without a reference: {sorted(missing)}"
    state.update({name: torch.tensor(np.ascontiguousarray(v)) for name, v in values.items()})
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)


def graphs(network: So3krates, reference: Reference, name: str) -> dict[str, tuple[Graph, Any]]:
    """The structure in both layouts with its edge vectors r_ij."""
    numbers, positions = reference[f"{name}.Z"], torch.tensor(reference[f"{name}.R"])
    species = torch.tensor(np.searchsorted(network.config.elements, numbers))
    real = reference[f"{name}.idx_i"] >= 0
    centre = torch.tensor(reference[f"{name}.idx_i"][real])
    neighbour = torch.tensor(reference[f"{name}.idx_j"][real])
    sparse = SparseGraph(
        species=species,
        structure_index=torch.zeros_like(species),
        receiver_index=centre,
        sender_index=neighbour,
        n_structures=1,
    )
    dense = DenseGraph(species[None], torch.ones_like(species, dtype=torch.bool)[None])
    return {
        "sparse": (sparse, positions[neighbour] - positions[centre]),
        "dense": (dense, dense.edge_vectors(positions[None])),
    }


def relative(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation over the largest magnitude."""
    return float(np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-300))


@pytest.mark.parametrize("layout", ["sparse", "dense"])
@pytest.mark.parametrize("name", FRAGMENTS + MOLECULES)
def test_energies_and_forces_equal_the_reference(
    network: So3krates, reference: Reference, name: str, layout: str
) -> None:
    graph, edge_vectors = graphs(network, reference, name)[layout]
    energies, gradients = energies_and_edge_gradients(network, Batch(graph, edge_vectors))
    forces = graph.forces(gradients).reshape(-1, 3).numpy()
    assert relative(energies.sum().numpy(), reference[f"{name}.energy_exactcg"]) < 1e-12
    assert relative(energies.flatten().numpy(), reference[f"{name}.energy_atom"]) < 1e-9
    expected = reference[f"{name}.forces_exactcg"]
    if np.abs(expected).max() == 0:
        assert np.array_equal(forces, expected)
    else:
        assert relative(forces, expected) < 1e-12


@pytest.mark.parametrize("reference", ["B"], indirect=True)
@pytest.mark.parametrize("name", [*FRAGMENTS, "ethanol_3", "aspirin_3"])
def test_scale_and_shift_equal_the_reference(
    network: So3krates, reference: Reference, name: str
) -> None:
    elements = list(network.config.elements)
    scaled = load_reference_parameters(reference)
    scaled.set_scale_shift(reference["scale_per_z"][elements], reference["shift_per_z"][elements])
    graph, edge_vectors = graphs(scaled, reference, name)["sparse"]
    energies, gradients = energies_and_edge_gradients(scaled, Batch(graph, edge_vectors))
    # These values carry the reference's float32 coefficient 1/√(2ℓ+1).
    assert relative(energies.numpy(), reference[f"{name}.ss.energy_atom"]) < 1e-8
    forces = graph.forces(gradients).numpy()
    assert np.allclose(forces, reference[f"{name}.ss.forces"], rtol=0, atol=1e-6)


@with_intermediates
def test_intermediates_equal_the_reference(
    network: So3krates, reference: Reference, name: str
) -> None:
    """Features, filters and attention of every layer, so that errors cannot cancel in the energy."""
    prefix = f"{name}.inter."
    recorded: dict[str, np.ndarray] = {}

    def record(key: str, index: int | None = None) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            value = output if index is None else output[index]
            recorded[key] = value.numpy()

        return hook

    handles = [network.embedding.register_forward_hook(record("embed.x"))]
    for k, layer in enumerate(network.layers):
        for module, key, index in (
            (layer, "x", 0),
            (layer, "chi", 1),
            (layer.invariant_filter, "fb_w_ij", None),
            (layer.equivariant_filter, "gb_w_ij", None),
            (layer.invariant_attention, "fb_alpha", None),
            (layer.equivariant_attention, "gb_alpha", None),
        ):
            handles.append(module.register_forward_hook(record(f"layer{k}.{key}", index)))
    graph, edge_vectors = graphs(network, reference, name)["sparse"]
    atomic_energies(network, Batch(graph, edge_vectors), edge_vectors)
    for handle in handles:
        handle.remove()

    # Layer 0 up to its interaction is exact; later numbers carry the float32 coefficient.
    exact = {"embed.x", "layer0.fb_w_ij", "layer0.gb_w_ij", "layer0.fb_alpha", "layer0.gb_alpha"}
    compared = 0
    for key, value in recorded.items():
        if prefix + key in reference:
            bound = 1e-12 if key in exact else 1e-7
            assert relative(value, reference[prefix + key]) < bound, key
            compared += 1
    n_layers = len(network.layers)
    assert compared == 1 + 4 * n_layers + 2 * min(n_layers, 2)  # filters of two layers are stored


@with_intermediates
def test_geometry_equals_the_reference(network: So3krates, reference: Reference, name: str) -> None:
    prefix = f"{name}.inter.geom."
    config = network.config
    _, edge_vectors = graphs(network, reference, name)["sparse"]
    geometry = edge_geometry(
        edge_vectors, config.cutoff, config.degrees, network.envelope, torch.float64
    )
    basis = exponential_gaussians(geometry.distances, config.radial_basis, config.cutoff)
    harmonics = torch.cat([geometry.harmonics[degree] for degree in config.degrees], -1)
    for value, key in (
        (edge_vectors, "r_ij"),
        (geometry.distances, "d_ij"),
        (geometry.envelope, "phi_r_cut"),
        (basis, "rbf_ij"),
        (harmonics, "sph_ij"),
    ):
        assert relative(value.numpy(), reference[prefix + key]) < 1e-12, key


def tiny_network(**changes: Any) -> So3krates:
    """Random and small, with features large enough for every part to matter."""
    torch.manual_seed(3)
    settings = {"elements": (1, 6, 8), "features": 12, "layers": 2, "heads": 2, "radial_basis": 8}
    network = So3krates(So3kratesConfig(**{**settings, **changes}))
    with torch.no_grad():
        network.embedding.weight.mul_(2)
    return network


class TestContract(PotentialContract):
    @pytest.fixture(scope="class", params=[False, True], ids=["plain", "robust"])
    @classmethod
    def potential(cls, request: pytest.FixtureRequest, dtype: str) -> Potential:
        network = tiny_network(robust_attention=request.param)
        network.set_scale_shift([0.4, 0.5, 0.6], [-13.6, -1035.0, -2043.0])
        return TorchPotential(network.to(getattr(torch, dtype)))


@pytest.mark.parametrize("degrees", [(1,), (2,), (1, 2, 3, 4)])
def test_any_degrees_are_equivariant(degrees: tuple[int, ...]) -> None:
    potential = TorchPotential(tiny_network(degrees=degrees, features=24).double())
    for name in ("rotation", "reflection"):
        result = run_check(name, probe(potential))
        assert result.outcome == "passed", result.detail


def test_robust_attention_is_bounded_by_its_temperature_and_filter() -> None:
    """|α| ≤ f_c τ max|w|: unlike the plain form, it does not grow with the features."""
    attention = tiny_network(robust_attention=True).layers[0].invariant_attention
    plain = tiny_network().layers[0].invariant_attention
    species = torch.zeros(3, dtype=torch.int64)
    graph = SparseGraph(species, species, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), 1)
    x, filters, envelope = torch.randn(3, 12), torch.randn(3, 12), torch.ones(3)
    context = Context(species)
    small, large = (attention(c * x, filters, envelope, graph, context) for c in (10.0, 1000.0))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)
    assert large.abs().max() <= attention.temperature.max() * filters.abs().max()
    grown = plain(1000 * x, filters, envelope, graph, context)
    assert grown.abs().max() > 100 * plain(10 * x, filters, envelope, graph, context).abs().max()


def test_zero_features_have_finite_derivatives() -> None:
    network = tiny_network(robust_attention=True).double()
    with torch.no_grad():
        network.embedding.weight.zero_()
    species = torch.zeros(2, dtype=torch.int64)
    graph = DenseGraph(species[None], torch.ones(1, 2, dtype=torch.bool))
    edge_vectors = graph.edge_vectors(torch.tensor([[[0.0, 0, 0], [1, 0, 0]]]).double())
    energies, gradients = energies_and_edge_gradients(network, Batch(graph, edge_vectors))
    energies.sum().backward()
    assert torch.isfinite(gradients).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_every_parameter_is_trained_by_energies_and_forces() -> None:
    network = tiny_network(robust_attention=True).double()
    with torch.no_grad():  # biases start at zero, where SiLU hides the weights behind it
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    structure = probe_molecules((1, 6, 8))["random molecule"]
    graph, edge_vectors = build_graph([structure], (1, 6, 8), network.config.cutoff)
    energies, gradients = energies_and_edge_gradients(network, Batch(graph, edge_vectors))
    (energies.sum() ** 2 + graph.forces(gradients).square().sum()).backward()
    idle = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    # In the first layer every c(χ_j − χ_i) is zero: these weights are the reference's own ballast.
    assert idle == {
        f"layers.0.{branch}_filter.spherical.first.weight"
        for branch in ("invariant", "equivariant")
    }


def test_published_size() -> None:
    """319k parameters with the reference's table of 100 embeddings."""
    network = So3krates(So3kratesConfig(elements=tuple(range(1, 101))))
    assert sum(parameter.numel() for parameter in network.parameters()) == 319_213


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 130}, "do not divide the 130 features"),
        ({"heads": 5}, "5 heads do not divide"),
        ({"degrees": (2, 1)}, "ascend"),
        ({"degrees": (1, 5)}, "less than or equal to 4"),
        ({"degrees": ()}, "at least 1 item"),
        ({"elements": (8, 1)}, "ascending"),
        ({"feature": 132}, "Extra inputs are not permitted"),
        ({"cutoff": -1.0}, "greater than"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        So3kratesConfig(**{"elements": (1, 6, 8), **changes})
