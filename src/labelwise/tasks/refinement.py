"""What the methods share that learn which pixels belong together, and refine score maps into masks with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from labelwise.datasets.base import Classes
from labelwise.errors import UserError, require_at_least
from labelwise.method import Method, Stream
from labelwise.metrics.seeds import SEED_THRESHOLDS, SeedScores
from labelwise.metrics.segmentation import SegmentationScores
from labelwise.models.pixel_affinity import PairLabels, affinity_labels
from labelwise.models.pixels import PixelNormalization
from labelwise.models.random_walk import random_walk
from labelwise.samples import Batch, Sample, ScoreMaps, Views
from labelwise.tasks.optimization import PlainOptimizationConfig, PlainOptimizedMethod, freeze_layers
from labelwise.transforms import RandomScaleCrop, WeakView


@dataclass(frozen=True, kw_only=True)
class RefinementConfig(PlainOptimizationConfig):
    """Options of every method that refines score maps by affinities of pixels."""

    output_stride: int = 16
    "pixels of the image per pixel of the backbone's last feature"
    crop: int = 512
    "side in pixels of the square training crops"
    scale_range: tuple[float, float] = (0.5, 1.5)
    "least and greatest factor by which an image is scaled before the crop"
    frozen_layers: tuple[str, ...] = ()
    "first layers of the backbone that stay as they were loaded, such as conv1 bn1 layer1"
    radius: int = 5
    "pixels of a map that are nearer to each other than this are linked in the random walk"
    beta: float = 10.0
    "power of the affinities in the random walk: a high one keeps the walk within boundaries"
    log_steps: int = 8
    "the random walk makes 2 to this power steps (logt, exp_times)"
    map_power: float = 1.0
    "power of the score maps before the random walk; 1.5 in W-OoD and BAS"

    def __post_init__(self) -> None:
        """Refuse numbers that no such method can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        for name, least in (("crop", 8), ("radius", 2), ("beta", 0), ("log_steps", 0), ("map_power", 0)):
            require_at_least(name, getattr(self, name), least)
        if self.log_steps > 16:
            raise UserError(f"--log-steps {self.log_steps}: must be at most 16, which are 65,536 steps")
        low, high = self.scale_range
        if not 0 < low <= high:
            raise UserError(f"--scale-range {low} {high}: must be two rising numbers above 0")


class RefinementMethod(PlainOptimizedMethod):
    """A method that learns from masks, with 255 where they are unsure, and turns score maps into whole masks.

    A subclass gives `build_network`, `losses`, `predict` and `refined`.
    """

    config: RefinementConfig
    Config = RefinementConfig

    def __init__(
        self,
        config: RefinementConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Method`; also makes the validation scores.

        Raises:
            UserError: the data set has no background.
        """
        if classes.background is None:
            raise UserError("--data: every class of this data set is a thing of its own; a walk needs a background")
        self.background_number = classes.background
        super().__init__(config, classes, training=training, earlier=earlier, initial=initial)
        self.normalize = PixelNormalization()
        self.scores = SegmentationScores(classes.names)
        self.seed_scores = SeedScores(classes.names, classes.background, SEED_THRESHOLDS)

    # ---------------------------------------------------------------- training

    def build_training(self) -> None:
        """Freeze the backbone's first layers, as the configuration says.

        Raises:
            UserError: the backbone has no layer of that name.
        """
        freeze_layers(self.network, self.config.frozen_layers)

    def streams(self) -> dict[str, Stream]:
        """One stream of crops with masks."""
        return {"labeled": Stream("labeled", self.masked_view)}

    def masked_view(self, sample: Sample) -> Views:
        """The augmented image and its mask."""
        return WeakView(self.augmentation())(Sample(id=sample.id, image=sample.image, mask=sample.mask))

    def augmentation(self) -> v2.Transform:
        """A random scale, a random crop and a flip; what lies outside the image is unsure."""
        crop = RandomScaleCrop(self.config.crop, None, self.config.scale_range)
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def pair_labels(self, batch: Batch, size: tuple[int, int], radius: int) -> PairLabels:
        """What the masks of a batch say of pairs of pixels.

        Args:
            batch: B images with masks.
            size: height and width of the map whose pixels are compared; each takes the label in its middle.
            radius: of the pairs.
        """
        assert batch.mask is not None
        labels = functional.interpolate(batch.mask[:, None], size=size, mode="nearest-exact")[:, 0]
        return affinity_labels(labels, radius, self.background_number)

    # -------------------------------------------------------------- prediction

    @abstractmethod
    def predict(self, image: Tensor) -> Tensor:
        """Affinities of nearby pixels.

        Args:
            image: [B, 3, H, W] uint8.

        Returns:
            [B, n, h, w] from 0 to 1, of the pairs of `pixel_affinity.neighbor_offsets(config.radius)`.
        """

    @abstractmethod
    def refined(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        """The scores of an image after the random walk.

        Args:
            image: [3, H, W] uint8.
            maps: its score maps, of N classes.

        Returns:
            [1 + N, H, W] float32 on the method's device: the background, and the classes of `maps.labels`.
        """

    def walk(self, scores: Tensor, affinity: Tensor) -> Tensor:
        """The configured random walk. [N, h, w] scores, [n, h, w] affinities -> [N, h, w]."""
        config = self.config
        return random_walk(scores, affinity, radius=config.radius, beta=config.beta, log_steps=config.log_steps)

    @torch.no_grad()
    def refined_mask(self, sample: Sample) -> Tensor:
        """The class of every pixel; of an image without score maps the background.

        Args:
            sample: an image with score maps.

        Returns:
            [H, W] uint8 on the CPU.

        Raises:
            UserError: the sample has no score maps.
        """
        if sample.maps is None:
            raise UserError(f"image '{sample.id}' has no score maps; make them with `labelwise annotate` first")
        return self.mask_of(sample.image.as_subclass(Tensor), sample.maps)

    def mask_of(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        """The class of the highest score. An image [3, H, W] uint8 and its maps -> [H, W] uint8 on the CPU."""
        numbers = torch.tensor([self.background_number, *maps.labels.tolist()], dtype=torch.uint8)
        if not len(maps.labels):
            return numbers.new_full(image.shape[1:], self.background_number)
        return numbers[self.refined(image.to(self.device), maps).argmax(0).cpu()]

    # -------------------------------------------------------------- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the refined mask of one image, and its seed before."""
        if batch.mask is None or batch.maps is None:
            return
        (maps,), (mask,) = batch.maps, batch.mask.cpu()
        self.scores.update(self.mask_of(batch.image[0], maps), mask)
        self.seed_scores.update(maps.fine.cpu(), maps.labels.cpu(), mask)

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU of the refined masks, and that of the seeds of the same images at their best threshold."""
        self.results = {"images": int(self.scores.images)}
        if self.scores.images:
            scores, seeds = self.scores.compute(), self.seed_scores.compute()
            self.results |= {
                "miou": scores.miou,
                "iou": scores.iou,
                "pixel_accuracy": scores.pixel_accuracy,
                "seed_miou": seeds.miou,
                "seed_threshold": seeds.threshold,
            }
            self.log("val/miou", scores.miou, prog_bar=True, rank_zero_only=True)
            self.log("val/seed_miou", seeds.miou, rank_zero_only=True)
            self.log_by_class("iou", scores.iou)
        self.scores.reset()
        self.seed_scores.reset()
