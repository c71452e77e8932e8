"""Moving outliers of activations into weights, without changing the network (SmoothQuant).

Xiao et al. 2023, Eq. 4: s_j = max|X_j|^a / max|W_j|^(1−a) for input j of the layers that read X; X/s is
folded into the normalisation before them, W·s into their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equibit.structures.errors import ModelError

if TYPE_CHECKING:
    from equibit.networks.base import AtomisticNetwork

_FLOOR = 1e-5


def smooth_(
    network: AtomisticNetwork,
    batches: Iterable[Any],
    run: Callable[[AtomisticNetwork, Any], Any],
    share: float = 0.5,
) -> AtomisticNetwork:
    """Fold s into normalisations and the layers behind them, in place; outputs do not change.

    Vectors have no normalisation to fold into and stay as they are.

    Args:
        network: an FP32 network.
        batches: what the largest activations are taken from.
        run: evaluates the network on a batch.
        share: a.

    Raises:
        ModelError: no batches, or a network without normalisations.
    """
    batches, groups = list(batches), network.normalised_inputs()
    if not batches:
        raise ModelError("smoothing needs at least one batch of structures")
    if not groups:
        raise ModelError(f"{type(network).__name__} has no normalisation to fold scales into")
    largest: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, _ in groups:
            hook = network.get_submodule(name).register_forward_hook(_watch(name, largest))
            hooks.callback(hook.remove)
        for batch in batches:
            run(network, batch)
    with torch.no_grad():
        for name, readers in groups:
            norm = network.get_submodule(name)
            assert isinstance(norm, nn.LayerNorm)
            weights = [
                network.get_submodule(reader).weight[:, first : first + norm.weight.shape[0]]  # type: ignore[index]
                for reader, first in readers
            ]
            scale = smoothing_scale(largest[name], weights, share)
            norm.weight.div_(scale)
            norm.bias.div_(scale)
            for weight in weights:
                weight.mul_(scale)
    return network


def smoothing_scale(largest: Tensor, weights: Iterable[Tensor], share: float) -> Tensor:
    """s_j, the same for all layers that share the input.

    Shape: largest [in]; each weight [out, in] → [in].
    """
    sizes = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale = largest.clamp_min(_FLOOR) ** share / sizes.clamp_min(_FLOOR) ** (1 - share)
    return scale.clamp_min(_FLOOR)


def _watch(name: str, largest: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen = output.detach().abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

    return hook
