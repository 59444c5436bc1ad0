"""BatchNorms folded into the convolutions before them: the same outputs with fewer passes over the maps.

In evaluation a BatchNorm is a scale and a shift of each channel, which the convolution before it can do itself (Jacob
et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018):

    gamma (w * x + b - mean) / sqrt(var + eps) + beta  =  w' * x + b',     w' = w gamma / sqrt(var + eps)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# These classes themselves: of a subclass nobody knows what it does with its weights, such as to standardise them.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def folded(network: NetworkT, predict: Callable[[NetworkT], object]) -> NetworkT:
    """A copy of a network for prediction alone, in evaluation mode, with the BatchNorms folded that can be.

    A BatchNorm is folded if whatever it is given comes from one convolution, all of whose outputs go nowhere else. What
    `predict` does not call stays as it is.

    Args:
        network: stays as it is.
        predict: calls a copy of the network in every way in which it will be called, on small images; returns what the
            network has returned.
    """
    copy = deepcopy(network).eval()
    pairs = _pairs(copy, predict)
    with torch.no_grad():
        for norm, convolution in pairs.items():
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.get_buffer("running_mean"),
                norm.get_buffer("running_var"),
                norm.eps,
                norm.weight,
                norm.bias,
            )
    for name, module in list(copy.named_modules(remove_duplicate=False)):
        if module in pairs:
            copy.set_submodule(name, _rest(module))
    return copy


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm that is folded."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


class _Made(NamedTuple):
    """An output of a convolution."""

    convolution: nn.Conv2d
    output: Tensor


class _Uses(TorchDispatchMode):
    """Counts the operations that take the outputs of convolutions, modules or not.

    Attributes:
        made: the outputs by their `id`; as they are kept, no other tensor gets the same.
        uses: `id` -> operations that take this output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, _Made] = {}
        self.uses: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.made)
        return func(*args, **kwargs)


@torch.no_grad()
def _pairs(network: NetworkT, predict: Callable[[NetworkT], object]) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """The BatchNorms that can be folded, and the convolution of each."""
    watch = _Uses()
    inputs: dict[nn.BatchNorm2d, list[int | None]] = {}

    def note_output(convolution: nn.Module, args: Any, output: Tensor) -> None:
        assert isinstance(convolution, nn.Conv2d)
        watch.made[id(output)] = _Made(convolution, output)

    def note_input(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        # Other tensors than these are not kept: what is made later may get their `id`.
        inputs.setdefault(norm, []).append(id(args[0]) if id(args[0]) in watch.made else None)

    handles = []
    for module in network.modules():
        if type(module) in _CONVOLUTIONS:
            handles.append(module.register_forward_hook(note_output))
        elif type(module) in _NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(note_input))
    try:
        with watch:
            results = predict(network)
    finally:
        for handle in handles:
            handle.remove()
    # To be given out is a use as well.
    watch.uses.update(id(leaf) for leaf in tree_leaves(results) if id(leaf) in watch.made)
    return _sole_pairs(watch, inputs)


def _sole_pairs(watch: _Uses, inputs: Mapping[nn.BatchNorm2d, list[int | None]]) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """Those of which every input of the BatchNorm and every output of the convolution are the same tensors, used once.

    Args:
        watch: what the convolutions made, and how often it was used.
        inputs: BatchNorm -> `id` of each of its inputs, None if no convolution made it.
    """
    outputs: dict[nn.Conv2d, set[int]] = {}
    for key, made in watch.made.items():
        outputs.setdefault(made.convolution, set()).add(key)
    sole: dict[frozenset[int | None], nn.Conv2d] = {
        frozenset(keys): conv for conv, keys in outputs.items() if all(watch.uses[key] == 1 for key in keys)
    }
    return {norm: sole[frozenset(keys)] for norm, keys in inputs.items() if frozenset(keys) in sole}
