"""The codes that activations take are those the quantisers round to."""

from __future__ import annotations

import numpy as np
import pytest
from tests.networks.test_equivariant_transformer import tiny_network
from tests.quantization.test_contract import MOLECULES, potential_of, quantized

from equibit.evaluation.activations import activation_code_use
from equibit.networks.potential import TorchPotential

STRUCTURES = [MOLECULES["random molecule"], MOLECULES["tetrahedron"]]
ATOMS = sum(len(structure) for structure in STRUCTURES)


def test_every_rounded_activation_of_every_atom_is_counted_once() -> None:
    network = quantized("w4a8")
    uses = activation_code_use(potential_of(network, "float64"), STRUCTURES)
    by_name = {(use.name, use.kind): use for use in uses}
    scalars = [use for use in uses if use.kind == "activation"]
    assert {use.bits for use in scalars} == {8}
    query = next(u for (name, _), u in by_name.items() if name.startswith("attention.0.query"))
    assert query.counts.sum() == ATOMS * 8
    # A dynamic scale spends its largest code on the largest activation of each atom.
    extremes = query.counts[[np.flatnonzero(query.codes == c)[0] for c in (-127, 127)]]
    assert extremes.sum() >= ATOMS
    assert not query.counts[query.codes == -128].any()


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        ("naive-w8a8", {"activation", "vector component"}),
        ("paper-w8a8", {"activation", "magnitude", "direction"}),
        ("gaq-w4a8", {"activation", "magnitude", "direction"}),
    ],
)
def test_vectors_show_the_codes_of_their_codec(recipe: str, kinds: set[str]) -> None:
    uses = activation_code_use(potential_of(quantized(recipe), "float64"), STRUCTURES)
    assert {use.kind for use in uses} == kinds
    for use in uses:
        if use.kind == "magnitude":
            assert use.codes[0] == 0
        if use.kind == "vector component":
            assert use.counts[use.codes < 0].any()


def test_fp32_and_wide_activations_have_nothing_to_show() -> None:
    assert activation_code_use(TorchPotential(tiny_network()), STRUCTURES) == []
    wide = activation_code_use(potential_of(quantized("w4a16"), "float64"), STRUCTURES)
    assert all(use.bits <= 8 for use in wide)


def test_nothing_stays_on_the_network() -> None:
    potential = potential_of(quantized("w8a8"), "float64")
    activation_code_use(potential, STRUCTURES)
    assert not any(module._forward_pre_hooks for module in potential.network.modules())
