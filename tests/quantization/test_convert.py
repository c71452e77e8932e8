"""Conversion, calibration, branches and freezing on whole networks."""

from __future__ import annotations

import copy
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.networks.test_frames import rotation
from torch import Tensor

from equibit.networks.attention import AttentionInput
from equibit.networks.base import AtomisticNetwork
from equibit.networks.equivariant_transformer import (
    EquivariantTransformer,
    EquivariantTransformerConfig,
)
from equibit.networks.linear import BlockLinear, EquivariantLinear, Linear
from equibit.networks.potential import (
    Batch,
    atomic_energies,
    build_graph,
    energies_and_edge_gradients,
    orient,
)
from equibit.networks.radial import RadialFilter
from equibit.networks.so3krates import So3krates, So3kratesConfig
from equibit.quantization.codecs import VectorQuantizer
from equibit.quantization.convert import (
    QuantizedLayer,
    calibrate,
    freeze_,
    quantize_,
    quantized_layers,
    quantizer_parameters,
    scalar_parameters,
    set_branch,
    vector_parameters,
)
from equibit.quantization.quantizers import ScalarQuantizer
from equibit.quantization.recipes import (
    PUBLISHED,
    RECIPES,
    Recipe,
    ScalarSpec,
    WeightSpec,
    get_recipe,
)
from equibit.structures import Structure
from equibit.structures.errors import ConfigError, ModelError

ELEMENTS = (1, 6, 8)
LOCAL = ["w8a8", "w4a8"]
LAB = [
    "naive-w8a8", "paper-w8a8", "paper-w4a8", "gaq-w4a8", *(recipe.name for recipe in PUBLISHED)
]  # fmt: skip


def transformer(irreps: str = "16x0e+16x1o+16x2e", layers: int = 2) -> EquivariantTransformer:
    torch.manual_seed(0)
    config = EquivariantTransformerConfig(elements=ELEMENTS, irreps=irreps, layers=layers, heads=2)
    return EquivariantTransformer(config)


def so3krates() -> So3krates:
    torch.manual_seed(0)
    return So3krates(So3kratesConfig(elements=ELEMENTS, features=24, layers=2, heads=2))


NETWORKS = {"equivariant_transformer": transformer, "so3krates": so3krates}


def molecules(n: int = 4, seed: int = 0, n_atoms: int = 8) -> list[Structure]:
    rng = np.random.default_rng(seed)
    grid = np.array([(x, y, z) for x in range(2) for y in range(2) for z in range(2)])
    return [
        Structure(
            numbers=rng.choice(ELEMENTS, n_atoms),
            positions=1.5 * grid[:n_atoms] + rng.normal(0, 0.25, (n_atoms, 3)),
        )
        for _ in range(n)
    ]


def batch(network: AtomisticNetwork, structures: list[Structure]) -> Batch:
    return orient(network, *build_graph(structures, ELEMENTS, network.config.cutoff))


def energies(network: AtomisticNetwork, structures: list[Structure]) -> Tensor:
    made = batch(network, structures)
    with torch.no_grad():
        return atomic_energies(network, made, made.edge_vectors)


def calibrated(network: AtomisticNetwork, recipe: Recipe | str) -> AtomisticNetwork:
    quantize_(network, recipe)
    calibrate(network, [batch(network, molecules(4, seed)) for seed in range(2)])
    return network


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_every_network(name: str, make) -> None:  # type: ignore[no-untyped-def]
    parent = make()
    network = calibrated(copy.deepcopy(parent), name)
    for path, module in network.named_modules():
        weight_only = path.startswith("head.") or path.endswith(("radial.first", ".filter"))
        if isinstance(module, Linear | BlockLinear | EquivariantLinear | RadialFilter):
            recipe = RECIPES[name]
            left = any(fnmatch(path, pattern) for pattern in recipe.keep_fp32)
            chosen = any(fnmatch(path, pattern) for pattern in recipe.weight_only_layers)
            kept = left or (weight_only and not (recipe.weight_only and chosen))
            assert isinstance(module, QuantizedLayer) != kept, path
            rounds_inputs = getattr(module, "input_quantizer", None) is not None
            assert rounds_inputs != weight_only, path
        if isinstance(module, AttentionInput):
            assert RECIPES[name].attention_bits is None
    before, after = energies(parent, molecules()), energies(network, molecules())
    error = (after - before).std() / before.std()
    if RECIPES[name] in PUBLISHED:  # which start where training is meant to take them from
        assert 0 < error < 1
    else:
        assert 0 < error < (0.35 if RECIPES[name].weights.bits == 4 else 0.1)
    has_vectors = make is transformer
    assert network.uses_local_frames == (name in LOCAL and has_vectors)
    assert network.uses_lab_frames == (name in LAB and has_vectors)


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_learns_from_energies_and_forces(name: str) -> None:
    network = calibrated(transformer(), name)
    made = batch(network, molecules(2))
    energy, gradients = energies_and_edge_gradients(network, made)
    (energy.square().mean() + gradients.square().mean()).backward()
    for path, parameter in network.named_parameters():
        if path.endswith("weight_quantizer.choice"):
            continue  # roundings are learned block by block
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


def unoriented(network: AtomisticNetwork, structures: list[Structure]) -> tuple[Tensor, Tensor]:
    """Energies and forces without the canonical orientation, which would hide lab-frame errors."""
    from equibit.networks.frames import local_frames

    graph, edges = build_graph(structures, ELEMENTS, network.config.cutoff)
    frames = local_frames(graph, edges, network.config.cutoff)
    energy, gradients = energies_and_edge_gradients(network, Batch(graph, edges, None, frames))
    return energy.detach(), graph.forces(gradients).detach()


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("codec", ["cartesian", "mddq", "mddq-cube", "mddq-codebook", "identity"])
def test_networks_with_local_frames_are_equivariant_to_round_off(codec: str, reflect: bool) -> None:
    vectors = RECIPES["w4a8"].vectors.model_copy(update={"codec": codec, "magnitude_bits": 4})
    recipe = RECIPES["w4a8"].model_copy(update={"vectors": vectors})
    network = calibrated(transformer(), recipe).double()
    structures = molecules(2)
    q = rotation(11, reflect)
    turned = [Structure(numbers=s.numbers, positions=s.positions @ q.T.numpy()) for s in structures]
    energy, forces = unoriented(network, structures)
    energy_turned, forces_turned = unoriented(network, turned)
    torch.testing.assert_close(energy_turned, energy, rtol=0, atol=1e-11)
    torch.testing.assert_close(forces_turned, forces @ q.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["naive-w8a8", "paper-w8a8", "gaq-w4a8"])
def test_networks_with_lab_frames_are_not(name: str) -> None:
    network = calibrated(transformer(), name).double()
    q = rotation(11).numpy()
    turned = [Structure(numbers=s.numbers, positions=s.positions @ q.T) for s in molecules(2)]
    forces, forces_turned = unoriented(network, molecules(2))[1], unoriented(network, turned)[1]
    assert (forces_turned - forces @ torch.from_numpy(q.T)).abs().max() > 1e-7


def test_branches_switch_apart() -> None:
    parent = transformer()
    recipe = RECIPES["w4a8"].model_copy(update={"float_bits": 32})  # 16 round tables at once
    network = calibrated(copy.deepcopy(parent), recipe)
    structures = molecules()
    full = energies(network, structures)
    set_branch(network, scalars=False, vectors=False)
    torch.testing.assert_close(energies(network, structures), energies(parent, structures))
    set_branch(network, scalars=True)
    scalars_only = energies(network, structures)
    set_branch(network, scalars=False, vectors=True)
    vectors_only = energies(network, structures)
    set_branch(network, scalars=True)
    assert torch.equal(energies(network, structures), full)
    assert not torch.equal(scalars_only, full)
    assert not torch.equal(vectors_only, full)


def test_branch_parameters_are_a_partition_and_shared_with_the_parent() -> None:
    network = transformer()
    before = dict(network.named_parameters())
    quantize_(network, "paper-w4a8")
    after = dict(network.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    vectors, scalars = vector_parameters(network), scalar_parameters(network)
    assert {id(p) for p in vectors} | {id(p) for p in scalars} == {id(p) for p in after.values()}
    assert not {id(p) for p in vectors} & {id(p) for p in scalars}
    assert all(".mix." in n for n, p in after.items() if id(p) in {id(v) for v in vectors})
    steps = [n for n in after if n.endswith("log2_step")]
    assert len(quantizer_parameters(network)) == len(steps) == len(after) - len(before)


def test_calibration_changes_no_output_by_itself_and_leaves_no_trace() -> None:
    network = transformer().double()
    structures = molecules()
    reference = energies(network, structures)
    quantize_(network, "paper-w8a8")
    seen: list[Tensor] = []

    def run(net: AtomisticNetwork, made: Batch) -> None:
        seen.append(atomic_energies(net, made, made.edge_vectors))

    calibrate(network, [batch(network, structures)], run)
    assert len(seen) == 2  # once for centres, once for ranges
    for seen_energies in seen:
        torch.testing.assert_close(seen_energies, reference)
    assert not any(
        m.observing for m in network.modules() if isinstance(m, ScalarQuantizer | VectorQuantizer)
    )
    with pytest.raises(ModelError, match="at least one batch"):
        calibrate(network, [])


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_centred_activations_lose_less(make) -> None:  # type: ignore[no-untyped-def]
    parent = make()
    errors = []
    for centered in (False, True):
        recipe = Recipe(scalars=ScalarSpec(bits=4, centered=centered), weights=WeightSpec(bits=8))
        network = calibrated(copy.deepcopy(parent), recipe)
        centers = [m for m in network.modules() if getattr(m, "centers", None) is not None]
        assert bool(centers) == centered
        errors.append((energies(network, molecules()) - energies(parent, molecules())).std())
    assert errors[1] < 0.8 * errors[0]
    for path, module in network.named_modules():
        if "_filter" in path and isinstance(module, ScalarQuantizer):
            assert module.centers is None


def test_freezing_changes_no_output_and_leaves_codes() -> None:
    network = calibrated(transformer(), RECIPES["w4a8"].model_copy(update={"float_bits": 32}))
    structures = molecules()
    before = energies(network, structures)
    freeze_(network)
    assert torch.equal(energies(network, structures), before)
    for layer in quantized_layers(network).values():
        assert layer.codes.dtype == torch.int8
        half = 2 ** (layer.spec.bits - 1)
        assert -half <= layer.codes.min().item()
        assert layer.codes.max().item() < half
    assert not any(
        name.endswith("weight") and "mix" in name for name, _ in network.named_parameters()
    )
    copied = copy.deepcopy(network).double().float()
    assert torch.equal(energies(copied, structures), before)


def test_results_do_not_depend_on_the_rest_of_the_batch() -> None:
    network = calibrated(transformer(), "w4a8").double()
    structures = [*molecules(3), *molecules(1, seed=5, n_atoms=3)]
    together = energies(network, structures)
    for row, structure in enumerate(structures):
        alone = energies(network, [structure])[0]
        torch.testing.assert_close(together[row, : len(structure)], alone, rtol=0, atol=1e-12)


def test_layers_can_be_kept() -> None:
    recipe = RECIPES["w8a8"].model_copy(update={"keep_fp32": ("update.*", "head.*")})
    network = quantize_(transformer(), recipe)
    assert all(name.startswith("attention.") for name in quantized_layers(network))
    assert not network.uses_local_frames


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_messages_and_the_last_block_have_bits_of_their_own(depth: int) -> None:
    recipe = get_recipe("w8a8").model_copy(update={"readout_depth": depth})
    layers = quantized_layers(quantize_(transformer(), recipe))
    bits = {
        name: layer.input_quantizer.spec.bits
        for name, layer in layers.items()
        if isinstance(getattr(layer, "input_quantizer", None), ScalarQuantizer)
    }
    last = ["update.1.hidden", "update.1.output"]
    last += [f"attention.1.{name}" for name in ("value", "key", "query")]
    assert {name for name, count in bits.items() if count == 16} == {
        "attention.0.output",
        "attention.1.output",
        *last[:depth],
    }
    assert set(bits.values()) == {8, 16}


def test_channel_mixings_have_weights_of_their_own() -> None:
    layers = quantized_layers(quantize_(transformer(), "w4a8"))
    bits = {
        mixing: {
            la.spec.bits for la in layers.values() if isinstance(la, EquivariantLinear) == mixing
        }
        for mixing in (True, False)
    }
    assert bits == {True: {8}, False: {4, 8}}  # 8 bits: the layers whose weights alone are rounded


def test_misuse_is_explained() -> None:
    with pytest.raises(ModelError, match="already quantised"):
        quantize_(quantize_(transformer(), "w8a8"), "w4a8")
    with pytest.raises(ModelError, match="nothing to quantise"):
        quantize_(transformer(), Recipe(keep_fp32=("*",)))
    with pytest.raises(ConfigError, match="did you mean 'w4a8'"):
        quantize_(transformer(), "w4a")
    with pytest.raises(ConfigError, match="did you mean 'dynamic'"):
        quantize_(transformer(), Recipe(scalars=ScalarSpec(scale="dynamik")))
    with pytest.raises(ModelError, match="not quantised"):
        freeze_(transformer())


def test_quantised_networks_trace_into_one_graph() -> None:
    network = calibrated(transformer("8x0e+8x1o", layers=1), "w4a8")
    made = batch(network, molecules(1))
    compiled = torch.compile(energies_and_edge_gradients, backend="eager", fullgraph=True)
    energy, gradients = compiled(network, made)
    reference = energies_and_edge_gradients(network, made)
    torch.testing.assert_close(energy, reference[0])
    torch.testing.assert_close(gradients, reference[1])


def test_the_worked_example_of_the_documentation_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    code = next(block for block in text.split("```python\n") if "class PowerOfTwo" in block)
    network = transformer()
    try:
        exec(code.split("```")[0], {"network": network})
        quantizer = network.attention[0].query.input_quantizer
        _, step = quantizer.codes(torch.rand(3, 16))
        assert torch.equal(torch.log2(step), torch.log2(step).round())
        assert energies(network, molecules()).isfinite().all()
    finally:
        ScalarQuantizer.registry.pop("power-of-two", None)
