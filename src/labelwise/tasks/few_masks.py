"""What the methods that learn from few masks and many bare images share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.errors import UserError, require_share
from labelwise.losses.pixel import pseudo_label
from labelwise.method import Stream
from labelwise.samples import Batch
from labelwise.tasks.deeplab import DeepLabConfig, DeepLabMethod
from labelwise.transforms import WeakStrongView, photometric
from labelwise.transforms.mixing import paste, sample_cutmix_boxes


class PseudoLabels(NamedTuple):
    """What a method would teach itself on some images.

    Attributes:
        label: [B, H, W] int64.
        keep: [B, H, W] bool, False where the pixel would not be used.
    """

    label: Tensor
    keep: Tensor


@dataclass(frozen=True, kw_only=True)
class FewMasksConfig(DeepLabConfig):
    """Options of every semi-supervised segmenter."""

    supervised_share: float = 0.0
    "share of the steps, at the start, that learns from labels alone; 0 in the papers, 0.3 for random backbones"

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_share("supervised_share", self.supervised_share)


class FewMasksMethod(DeepLabMethod):
    """A segmenter that learns from a labelled and an unlabelled stream."""

    config: FewMasksConfig
    Config = FewMasksConfig

    @property
    def warming_up(self) -> bool:
        """Whether this step still learns from labels alone."""
        return self.progress < self.config.supervised_share

    @abstractmethod
    def pseudo_labels(self, image: Tensor) -> PseudoLabels:
        """What the method would teach on clean images now; called in evaluation mode and without gradients.

        Args:
            image: [B, 3, H, W] uint8.
        """


@dataclass(frozen=True, kw_only=True)
class WeakToStrongConfig(FewMasksConfig):
    """Options of the FixMatch family."""

    blur: tuple[float, float] = (0.1, 2.0)
    "least and greatest standard deviation of the strong view's blur, in pixels"

    def __post_init__(self) -> None:
        """Refuse a range that is none.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        low, high = self.blur
        if not 0 < low <= high:
            raise UserError(f"--blur {low} {high}: must be two rising numbers above 0")


class MixedView(NamedTuple):
    """Strong views with boxes of a partner's strong view pasted in.

    Attributes:
        image: [B, 3, S, S] float32, normalised.
        box: [B, S, S] bool, True where the partner is; predictions have to be pasted with it as well.
        valid: [B, S, S] bool, False on padding.
    """

    image: Tensor
    box: Tensor
    valid: Tensor


class WeakToStrongMethod(FewMasksMethod):
    """A method that labels a weak view and learns from strong views mixed by CutMix (protocol, sections 4.1, 4.2).

    A step draws a labelled batch, an unlabelled one and a second unlabelled one, whose images are the partners that
    CutMix pastes in.
    """

    config: WeakToStrongConfig
    Config = WeakToStrongConfig
    strong_views: int = 1
    "strong views of each unlabelled image"

    def strong_change(self) -> Callable[[tv_tensors.Image], tv_tensors.Image]:
        """The photometric change that makes a strong view of a weak one."""
        return photometric(self.config.blur)

    def streams(self) -> dict[str, Stream]:
        """Labelled crops; unlabelled crops with strong views; as many partners, drawn independently."""
        views = WeakStrongView(self.geometric(), self.strong_change(), self.strong_views)
        unlabeled = Stream("unlabeled", views)
        return {"labeled": Stream("labeled", self.weak_view()), "unlabeled": unlabeled, "partner": unlabeled}

    def mixed_view(self, unlabeled: Batch, partner: Batch, number: int = 0) -> MixedView:
        """The strong view of this number, with a new box of the partners' per image."""
        assert unlabeled.padding is not None and partner.padding is not None
        box = sample_cutmix_boxes(len(unlabeled), unlabeled.image.shape[-1]).to(unlabeled.image.device)
        image = paste(unlabeled.strong[number], partner.strong[number], box)
        return MixedView(self.normalize(image), box, ~paste(unlabeled.padding, partner.padding, box))

    def partner_logits(self, partner: Batch) -> Tensor:
        """[B, K, S, S] logits on the partners' weak views, by running statistics and without gradients.

        The weak views themselves are predicted with the batch's statistics; the family's released code has this
        asymmetry.
        """
        with torch.no_grad(), in_evaluation(self.network):
            logits: Tensor = self.network(self.normalize(partner.image))
        return logits

    def confident_labels(self, network: nn.Module, image: Tensor, threshold: Tensor | float) -> PseudoLabels:
        """The arg-max labels of clean uint8 images, kept where the confidence reaches the threshold."""
        label, confidence = pseudo_label(network(self.normalize(image)))
        return PseudoLabels(label, confidence >= threshold)


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Let a module use its running statistics for a while; each part's own mode comes back, frozen ones included."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
