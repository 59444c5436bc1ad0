"""What methods with a backbone share in training it: the optimiser, its groups of parameters, frozen normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Method, MethodConfig


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(MethodConfig):
    """Options of the optimiser."""

    backbone: str = "resnet50s"
    "timm name of the backbone, fd_mobilenet, or tiny, tiny32, micro_w10: small ones that train on a CPU"
    backbone_weights: str = "imagenet"
    "imagenet (timm's weights), none, a file in the network's own naming, or for fd_mobilenet a run on tags"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    "sgd has momentum 0.9"
    learning_rate: float = 0.001
    "of the backbone at the first step"
    head_multiplier: float = 10.0
    "learning rate of everything but the backbone, as a multiple"
    weight_decay: float = 1e-4
    "on convolution and linear weights"
    freeze_norms: bool = False
    "keep the backbone's BatchNorm statistics as they were loaded; wanted for small batches"

    def __post_init__(self) -> None:
        """Refuse numbers that no optimiser can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        for name in ("learning_rate", "head_multiplier", "weight_decay"):
            require_at_least(name, getattr(self, name), 0)


class OptimizedMethod(Method):
    """A method whose parameters in the backbone and elsewhere learn at rates of their own."""

    config: OptimizationConfig
    Config = OptimizationConfig

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen normalisations stay in evaluation."""
        super().train(mode)
        self._keep_norms_frozen()
        return self

    def _keep_norms_frozen(self) -> None:
        """Put the backbones' normalisations back into evaluation, if they are frozen; the last thing `train` does."""
        if not self.config.freeze_norms:
            return
        for name, module in self.named_modules():
            if in_backbone(name) and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over `parameter_groups`, its rates multiplied by `rate_factor` at every step."""
        return scheduled(self.make_optimizer(self.parameter_groups()), self.rate_factor)

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0; always the same unless a task has a schedule."""
        return 1.0

    def make_optimizer(self, groups: list[dict[str, object]]) -> Optimizer:
        """SGD with momentum 0.9, or AdamW."""
        if self.config.optimizer == "adamw":
            return AdamW(groups)
        return SGD(groups, momentum=0.9)

    def parameter_groups(self) -> list[dict[str, object]]:
        """The trained parameters, grouped by `rate_multiplier` and `decays`."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                key = self.rate_multiplier(name, parameter), self.decays(name, parameter)
                groups.setdefault(key, []).append(parameter)
        config = self.config
        return [
            {
                "params": parameters,
                "lr": config.learning_rate * multiplier,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (multiplier, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """The learning rate of a parameter as a multiple: 1 in the backbone, `head_multiplier` elsewhere."""
        return 1.0 if in_backbone(name) else self.config.head_multiplier

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on a parameter; on all unless a task says otherwise."""
        return True


@dataclass(frozen=True, kw_only=True)
class PlainOptimizationConfig(OptimizationConfig):
    """Options of the optimiser that the pipelines from tags share, whose papers train without momentum."""

    freeze_norms: bool = True
    "keep the backbone's BatchNorm as it was loaded; has to be off for random weights"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    "sgd has the momentum that is given"
    learning_rate: float = 0.1
    "of the backbone, and of what learns as fast, at the first step"
    momentum: float = 0.0
    "of SGD; the papers' rates, ten times the usual, belong to 0 (IRNet's code hands weight decay over as momentum)"
    schedule: Literal["poly", "constant"] = "poly"
    "of the learning rate: (1 - t/T)^0.9, or always the same"

    def __post_init__(self) -> None:
        """Refuse a momentum that is none.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_share("momentum", self.momentum)


class PlainOptimizedMethod(OptimizedMethod):
    """A method that is trained with the momentum that is given, by a falling learning rate."""

    config: PlainOptimizationConfig
    Config = PlainOptimizationConfig

    def make_optimizer(self, groups: list[dict[str, object]]) -> Optimizer:
        """SGD with the configured momentum, or AdamW."""
        return AdamW(groups) if self.config.optimizer == "adamw" else SGD(groups, momentum=self.config.momentum)

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0, by the configured schedule."""
        if self.config.schedule == "constant":
            return 1.0
        return float((1 - min(step, self.total_steps) / self.total_steps) ** 0.9)


def scheduled(optimizer: Optimizer, rate_factor: Callable[[int], float]) -> OptimizerLRScheduler:
    """The optimiser, its learning rates multiplied at every step by a factor of the step's number."""
    schedule = LambdaLR(optimizer, rate_factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}


def in_backbone(name: str) -> bool:
    """Whether a parameter or module of this dotted name lies in a backbone."""
    return "backbone" in name.split(".")


def freeze_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """Take layers of a network's backbone out of the training.

    Args:
        network: with a part `backbone`.
        layers: names within the backbone's body, such as `layer1` or `conv1`.

    Raises:
        UserError: the backbone has no layer of that name.
    """
    for layer in layers:
        found = [parameter for name, parameter in network.named_parameters() if f".body.{layer}." in f".{name}"]
        if not found:
            raise UserError(f"--frozen-layers {layer}: the backbone has no such layer")
        for parameter in found:
            parameter.requires_grad_(False)
