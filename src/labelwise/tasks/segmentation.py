"""What the methods of semantic segmentation share: network, prediction, validation, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from labelwise.datasets.base import Classes
from labelwise.errors import UserError, require_at_least
from labelwise.losses.pixel import cross_entropy, ohem_cross_entropy
from labelwise.method import Method
from labelwise.metrics.boundary import BoundaryIoU
from labelwise.metrics.segmentation import Scores, SegmentationScores
from labelwise.metrics.trimap import TrimapIoU
from labelwise.models.inference import Inference
from labelwise.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from labelwise.models.sliding import sliding_window_logits
from labelwise.samples import Batch
from labelwise.tasks.optimization import OptimizationConfig, OptimizedMethod
from labelwise.transforms import RandomChoiceScaleCrop, RandomScaleCrop, WeakView

TEXTURES = {"scenes": "textures", "size": 40, "train": 320, "val": 200}
"""The synthetic data set of the claims: the class is the pattern, never the color, so that strong views keep it."""
SCALES = (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)
"""The scales of the CPS family's released code; 1.25 is not among them."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(OptimizationConfig):
    """Options of every trained segmenter; the defaults are those of UniMatch's VOC recipe."""

    crop: int = 321
    "side of the square training crops in pixels; 0 = whole images, of one size in a step"
    scaling: Literal["uniform", "choice"] = "uniform"
    "before the crop: a uniform factor, padding right and below (UniMatch), or one of six, padding around (CPS)"
    scale_range: tuple[float, float] = (0.5, 2.0)
    "least and greatest factor of the scaling"
    scale_base: int = 0
    "uniform factors are relative to this long side in pixels; 0 = the image's own"
    schedule: Literal["poly", "step", "constant"] = "poly"
    "of the learning rate: (1 - t/T)^0.9, a tenth after each third of the steps, or always the same"
    decay_norms: bool = True
    "weight decay on normalisation weights and biases as well"
    ohem_pixels: int = 0
    "learn from the hard pixels alone (probability up to 0.7), at least so many per image; 0 = from all; Cityscapes"
    window: int = 0
    "side of the sliding window in evaluation, in pixels; 0 = the whole image at once"
    windows: Literal["shifted", "cut"] = "shifted"
    "at the border: moved back to end there, logits averaged (CPS), or cut short, probabilities averaged (UniMatch)"

    def __post_init__(self) -> None:
        """Refuse numbers that no segmenter can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("crop", self.crop, 8 if self.crop else 0)
        for name in ("window", "ohem_pixels"):
            require_at_least(name, getattr(self, name), 0)
        low, high = self.scale_range
        if not 0 < low <= high:
            raise UserError(f"--scale-range {low} {high}: must be two rising numbers above 0")
        if self.scaling == "choice" and not self.scales:
            raise UserError(f"--scale-range {low} {high}: holds none of the scales {', '.join(map(str, SCALES))}")

    @property
    def scales(self) -> tuple[float, ...]:
        """The factors to choose from that lie within `scale_range`."""
        low, high = self.scale_range
        return tuple(scale for scale in SCALES if low <= scale <= high)

    def at_output_stride(self, output_stride: int) -> Self:
        """The configuration of the same weights at another output stride, for evaluation.

        Raises:
            UserError: this network has one output stride only, or cannot have that one.
        """
        raise UserError(
            f"--output-stride {output_stride}: this model's network has one output stride only; leave it out"
        )


class SegmentationMethod(OptimizedMethod):
    """A method that ends in a network from images to one class per pixel."""

    config: SegmentationConfig
    Config = SegmentationConfig
    inference: Inference = Inference()
    "how predictions are made beyond a single pass; the verbs set it"

    def __init__(
        self,
        config: SegmentationConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Method`; also makes the validation scores."""
        super().__init__(config, classes, training=training, earlier=earlier, initial=initial)
        self.normalize = PixelNormalization(*self.pixel_statistics)
        self.scores = SegmentationScores(classes.names)
        self.boundary = BoundaryIoU(classes.names)
        self.trimap = TrimapIoU(classes.names)
        names = self.companions() if training else {}
        self.companion_scores = nn.ModuleDict({name: SegmentationScores(classes.names) for name in names})

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of RGB in 0..1, with which the backbone's weights were trained."""
        return IMAGENET_MEAN, IMAGENET_STD

    def loss_on_labels(self, labeled: Batch) -> Tensor:
        """The supervised loss of labelled images, in a forward pass of their own."""
        return self.supervised_loss(self.network(self.normalize(labeled.image)), labeled)

    def companions(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Networks beside the one that is kept, such as a teacher, that evaluations during training score too.

        Returns:
            name -> from normalised images [B, 3, H, W] to scores [B, K, H, W]. The mean IoU of each is logged and
            reported as `miou_<name>`.
        """
        return {}

    def weak_view(self) -> WeakView:
        """One view, with the geometric augmentation alone."""
        return WeakView(self.geometric())

    def geometric(self) -> v2.Transform:
        """The geometric augmentation: random scale, random crop, flip; of whole images the flip alone."""
        config = self.config
        if not config.crop:
            return v2.RandomHorizontalFlip()
        scale_crop: v2.Transform
        if config.scaling == "choice":
            scale_crop = RandomChoiceScaleCrop(config.crop, config.scales)
        else:
            scale_crop = RandomScaleCrop(config.crop, config.scale_base or None, config.scale_range)
        return v2.Compose([scale_crop, v2.RandomHorizontalFlip()])

    def supervised_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """Cross-entropy with the true masks, of all or of the hard pixels.

        Args:
            logits: [B, K, H, W].
            labeled: B images with masks.
        """
        assert labeled.mask is not None
        if self.config.ohem_pixels:
            kept = self.config.ohem_pixels * len(labeled)
            return ohem_cross_entropy(logits, labeled.mask, threshold=0.7, min_kept=kept)
        return cross_entropy(logits, labeled.mask)

    def predict(self, image: Tensor) -> Tensor:
        """Class scores of whole images, in the way that `inference` says.

        Args:
            image: [B, 3, H, W] uint8.

        Returns:
            [B, K, H, W] float32: logits, or with any option of `inference` logarithms of probabilities.
        """
        return self.inference.scores(partial(self._windowed, self.network), image, self.normalize(image))

    def _windowed(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        window = self.config.window if self.inference.window is None else self.inference.window
        if not window:
            return network(image).float()
        if self.config.windows == "cut":
            mean = sliding_window_logits(network, image, window, max(1, window * 2 // 3), "cut", "softmax")
            # As logits: further passes and the CRF take a soft-max.
            return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
        return sliding_window_logits(network, image, window, -(-window * 2 // 3), "shift", "logits")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the prediction of one image at its own size."""
        assert batch.mask is not None
        prediction = self.predict(batch.image).argmax(1).to(torch.uint8)
        self.scores.update(prediction, batch.mask)
        for name, network in self.companions().items() if self.companion_scores else ():
            theirs = self._windowed(network, self.normalize(batch.image)).argmax(1).to(torch.uint8)
            cast(SegmentationScores, self.companion_scores[name]).update(theirs, batch.mask)
        if self.thorough:
            self.boundary.update(prediction, batch.mask)
            self.trimap.update(prediction, batch.mask)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU, pixel accuracy and the IoU of each class over the whole split."""
        scores: Scores = self.scores.compute()
        self.scores.reset()
        self.results = {
            "miou": scores.miou,
            "iou": scores.iou,
            "pixel_accuracy": scores.pixel_accuracy,
            "images": scores.images,
            "mean_accuracy": scores.mean_accuracy,
            "frequency_weighted_iou": scores.frequency_weighted_iou,
        }
        if self.thorough:
            self.results["boundary_iou"] = self.boundary.compute().miou
            self.boundary.reset()
            # Named by text, as JSON does.
            self.results["trimap_miou"] = {str(width): value for width, value in self.trimap.compute().items()}
            self.trimap.reset()
        self._log_companions()
        self.log("val/miou", scores.miou, prog_bar=True, rank_zero_only=True)
        self.log("val/pixel_accuracy", scores.pixel_accuracy, rank_zero_only=True)
        self.log_by_class("iou", scores.iou)

    def _log_companions(self) -> None:
        for name, metric in self.companion_scores.items():
            miou = cast(SegmentationScores, metric).compute().miou
            cast(SegmentationScores, metric).reset()
            self.results[f"miou_{name}"] = miou
            self.log(f"val/miou_{name}", miou, rank_zero_only=True)

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0, by the configured schedule."""
        if self.config.schedule == "constant":
            return 1.0
        if self.config.schedule == "step":
            return float(0.1 ** (3 * step // self.total_steps))
        return float((1 - min(step, self.total_steps) / self.total_steps) ** 0.9)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on a parameter: on all, or without `decay_norms` on weights of layers alone."""
        return self.config.decay_norms or parameter.ndim > 1


def require_output_stride(output_stride: int, allowed: Sequence[int]) -> None:
    """Check another output stride for evaluation.

    Raises:
        UserError: it is none of those that the network can have.
    """
    if output_stride not in allowed:
        raise UserError(f"--output-stride {output_stride}: must be one of {', '.join(map(str, allowed))}")
