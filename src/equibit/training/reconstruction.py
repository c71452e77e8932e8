"""Fitting a quantised network to its float parent block by block, without labels (QDrop, ZeroQuant).

Each block B in turn: min ‖B_q(x̃) − B_fp(x)‖² over its outputs, x being what the parent's block
receives and x̃ a mixture, element by element, of x and of what the quantised blocks before it deliver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import Batch, atomic_energies
from equibit.quantization.published import AdaRoundWeights
from equibit.quantization.quantizers import ScalarQuantizer
from equibit.quantization.recipes import Reconstruction
from equibit.structures import ModelError, Structure
from equibit.training.batches import Collator

FIRST_SHARPNESS, LAST_SHARPNESS = 20.0, 2.0  # β of AdaRound
FREE = 0.2  # share of the steps before roundings are driven to a decision

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class BlockData:
    """What one batch means for one block.

    Attributes:
        float_inputs, rounded_inputs: of the parent's block and of the quantised one.
        outputs: of the parent's block.
    """

    float_inputs: Arguments
    rounded_inputs: Arguments
    outputs: Any


def reconstruct(
    network: AtomisticNetwork,
    teacher: AtomisticNetwork,
    structures: Sequence[Structure],
    settings: Reconstruction,
    *,
    seed: int = 0,
) -> list[float]:
    """Fit a calibrated network to the float one it was made from, in place.

    Args:
        network: quantised and calibrated.
        teacher: its float parent.
        structures: of which ``settings.samples`` are used; labels are not.
        settings: what is learned and how.
        seed: of batches and of what stays float.

    Returns:
        For each block, the mean error of its last steps over that of its first, in [0, …).

    Raises:
        ModelError: the network does not name its blocks.
    """
    names = network.blocks()
    if not names:
        raise ModelError(f"{type(network).__name__} does not name its blocks: nothing to fit")
    collator = Collator(structures[: settings.samples], network, forces=False)
    size = len(collator.structures)
    starts = range(0, size, settings.batch_size)
    batches = [
        collator(range(start, min(size, start + settings.batch_size))).inputs for start in starts
    ]
    generator = torch.Generator().manual_seed(seed)
    was_training = network.training
    network.eval()
    teacher.eval()
    gains = []
    for name in names:
        data = [block_data(network, teacher, name, batch) for batch in batches]
        gains.append(_fit_block(network.get_submodule(name), data, settings, generator))
    network.train(was_training)
    return gains


def block_data(
    network: AtomisticNetwork, teacher: AtomisticNetwork, name: str, batch: Batch
) -> BlockData:
    """What reaches a block in both networks, and what leaves the teacher's."""
    rounded_inputs, _ = _recorded(network, name, batch)
    float_inputs, outputs = _recorded(teacher, name, batch)
    return BlockData(float_inputs, rounded_inputs, outputs)


def _recorded(network: AtomisticNetwork, name: str, batch: Batch) -> tuple[Arguments, Any]:
    seen: list[tuple[Arguments, Any]] = []

    def hook(module: nn.Module, inputs: Arguments, outputs: Any) -> None:
        seen.append((inputs, outputs))

    handle = network.get_submodule(name).register_forward_hook(hook)
    try:
        with torch.no_grad():
            atomic_energies(network, batch, batch.edge_vectors)
    finally:
        handle.remove()
    return seen[0]


def _fit_block(
    block: nn.Module,
    data: Sequence[BlockData],
    settings: Reconstruction,
    generator: torch.Generator,
) -> float:
    roundings = [m for m in block.modules() if isinstance(m, AdaRoundWeights)]
    quantizers = [m for m in block.modules() if isinstance(m, ScalarQuantizer)]
    steps = [p for quantizer in quantizers for p in quantizer.parameters()]
    if settings.learn == "rounding":
        learned = [rounding.choice for rounding in roundings]
        groups = [
            {"params": learned, "lr": settings.learning_rate},
            {"params": steps, "lr": settings.step_learning_rate},
        ]
    else:
        learned = list(block.parameters())
        groups = [{"params": learned, "lr": settings.learning_rate}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return 1.0
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    # Within a block activations stay float as often as its inputs do; a teacher's input has none.
    dropped = settings.keep if settings.learn == "rounding" else 0.0
    for rounding in roundings:
        rounding.soft = True
    for quantizer in quantizers:
        quantizer.keep = dropped
    errors = []
    for step in range(settings.steps):
        one = data[int(torch.randint(len(data), (), generator=generator))]
        inputs = mixed(one.float_inputs, one.rounded_inputs, settings.keep, generator)
        error = difference(block(*inputs), one.outputs)
        loss = error
        if step >= FREE * settings.steps:
            sharpness = _sharpness(step / settings.steps)
            loss = loss + settings.decision * sum(
                (rounding.indecision(sharpness) for rounding in roundings),
                start=error.new_zeros(()),
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append(error.item())
    for rounding in roundings:
        rounding.soft = False
    for quantizer in quantizers:
        quantizer.keep = 0.0
    few = max(1, settings.steps // 10)
    return math.fsum(errors[-few:]) / max(math.fsum(errors[:few]), 1e-300)


def _sharpness(done: float) -> float:
    """β from 20 down to 2, once roundings have had their free steps."""
    share = (done - FREE) / (1 - FREE)
    return FIRST_SHARPNESS + (LAST_SHARPNESS - FIRST_SHARPNESS) * share


def mixed(one: Any, other: Any, keep: float, generator: torch.Generator) -> Any:
    """Each element from ``one`` with probability ``keep``, else from ``other``."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        chosen = torch.rand(a.shape, generator=generator).to(a.device) < keep
        return torch.where(chosen, a, b)

    return _map(mix, one, other)


def difference(one: Any, other: Any) -> Tensor:
    """Σ ‖a − b‖²/n over all tensors in equal structures, n their elements. Shape: → []."""
    parts: list[Tensor] = []
    _map(lambda a, b: parts.append((a - b).square().mean()), one, other)
    return torch.stack(parts).sum()


def _map(function: Callable[[Tensor, Tensor], Any], one: Any, other: Any) -> Any:
    """``function`` of floating-point tensors at the same place; all else as in ``one``."""
    if isinstance(one, Tensor):
        return function(one, other) if one.is_floating_point() else one
    if isinstance(one, dict):
        return {key: _map(function, value, other[key]) for key, value in one.items()}
    if isinstance(one, tuple | list):
        return type(one)(_map(function, a, b) for a, b in zip(one, other, strict=True))
    return one
