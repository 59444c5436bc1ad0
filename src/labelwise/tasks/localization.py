"""What the methods share that learn from tags and say where in the image a class is: views, maps, scores, optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchvision.transforms import v2

from labelwise.datasets.base import Classes
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.losses.tags import multi_label_loss
from labelwise.method import Method, Stream
from labelwise.metrics.localization import LocalizationAccuracy, MaxBoxAccuracy, PixelAveragePrecision
from labelwise.metrics.map_boxes import boxes_in_frame
from labelwise.metrics.seeds import SEED_THRESHOLDS, SeedScores
from labelwise.metrics.tags import ClassificationScores
from labelwise.models.cam import multi_scale_maps
from labelwise.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from labelwise.samples import IGNORE_INDEX, Batch, Sample, ScoreMaps, Views
from labelwise.tasks.classification import tags_of_sample
from labelwise.tasks.optimization import PlainOptimizationConfig, PlainOptimizedMethod, freeze_layers
from labelwise.transforms.sized_crop import RandomSizedCrop

FRAME = 224
"""Side in pixels of the square in which boxes of score maps are compared with true ones."""
_PRESENT = 0.5
"""The probability from which a class counts as present where an image's tags are not known."""


class LocalizationNetwork(Protocol):
    """What these methods ask of a network."""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] normalised images -> [B, K] logits."""

    def maps(self, x: Tensor) -> Tensor:
        """[B, 3, h, w] normalised images -> [B, K, h', w'] maps that are not negative."""


@dataclass(frozen=True, kw_only=True)
class LocalizationConfig(PlainOptimizationConfig):
    """Options of every method that learns score maps from tags; the defaults are those of IRNet's classifier."""

    backbone: str = "resnet50"
    "timm name of the backbone, fd_mobilenet, or tiny, micro_w10: small ones that train on a CPU"
    output_stride: int = 16
    "pixels of the image per pixel of the last feature"
    crop: int = 512
    "side in pixels of the square training crops"
    resizing: Literal["long_side", "square"] = "long_side"
    "before the crop: the long side gets a random length, or both sides, which squeezes the image"
    resize_range: tuple[int, int] = (320, 640)
    "least and greatest length in pixels"
    color_jitter: float = 0.0
    "strength of random brightness, contrast and saturation, and a third of it of hue; 0.3 in PSA"
    frozen_layers: tuple[str, ...] = ()
    "first layers of the backbone that stay as they were loaded: conv1 bn1 layer1 layer2 for IRNet's ResNet"
    map_scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    "factors of the image's size whose score maps are added"
    map_flip: bool = True
    "add the score maps of the mirrored image"
    background: float = 0.15
    "constant score of the background where maps become a mask (the seed)"

    def __post_init__(self) -> None:
        """Refuse numbers that no such network can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("crop", self.crop, 8)
        require_share("background", self.background)
        require_at_least("color_jitter", self.color_jitter, 0)
        low, high = self.resize_range
        if not 8 <= low <= high:
            raise UserError(f"--resize-range {low} {high}: must be two rising numbers of at least 8")
        if not self.map_scales or not all(0 < scale <= 8 for scale in self.map_scales):
            shown = " ".join(map(str, self.map_scales))
            raise UserError(f"--map-scales {shown}: must be one or more factors above 0 and up to 8")


class LocalizationMethod(PlainOptimizedMethod):
    """A method that learns from tags and gives a score map for every tag of an image.

    A subclass gives `build_network`, a `LocalizationNetwork` with one column for each class but the background.
    """

    config: LocalizationConfig
    Config = LocalizationConfig

    def __init__(
        self,
        config: LocalizationConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Method`; also makes the validation scores.

        Raises:
            UserError: the data set has no background, which a seed needs.
        """
        if classes.background is None:
            raise UserError("--data: every class of this data set is a thing of its own; a map needs a background")
        super().__init__(config, classes, training=training, earlier=earlier, initial=initial)
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self.tag_scores = ClassificationScores(self.tag_names)
        self.seed_scores = SeedScores(classes.names, classes.background, SEED_THRESHOLDS)
        self.localization_scores = LocalizationAccuracy()
        self.box_scores = MaxBoxAccuracy()
        self.pixel_scores = PixelAveragePrecision()

    # ---------------------------------------------------------------- training

    def build_training(self) -> None:
        """Freeze the backbone's first layers, as the configuration says.

        Raises:
            UserError: the backbone has no layer of that name.
        """
        freeze_layers(self.network, self.config.frozen_layers)

    @property
    def tag_names(self) -> tuple[str, ...]:
        """The names of the K classes that have a column: all but the background."""
        return tuple(self.classes.names[number] for number in self.classes.objects)

    def columns(self, labels: Tensor) -> Tensor:
        """The columns of class numbers. [N] int64 -> [N] int64."""
        places = {number: column for column, number in enumerate(self.classes.objects)}
        return torch.tensor([places[label] for label in labels.tolist()], dtype=torch.int64)

    def streams(self) -> dict[str, Stream]:
        """One stream of tagged crops."""
        return {"labeled": Stream("labeled", self.tagged_view)}

    def tagged_view(self, sample: Sample) -> Views:
        """The augmented image and its tags; labels of stronger kinds are reduced to tags first."""
        tags = tags_of_sample(sample, self.classes)
        return Views(sample=Sample(id=sample.id, image=self.augmentation()(sample.image), tags=tags))

    def augmentation(self) -> v2.Transform:
        """A random size, a random crop, a flip, and if so configured colors."""
        config = self.config
        crop = RandomSizedCrop(config.crop, config.resize_range, config.resizing)
        strength = config.color_jitter
        jitter = [v2.ColorJitter(strength, strength, strength, min(strength / 3, 0.5))] if strength else []
        return v2.Compose([*jitter, crop, v2.RandomHorizontalFlip()])

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy of the tags."""
        return {"tags": self.tag_loss(self.network(self.normalize(labeled.image)), labeled)}

    def tag_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """Mean binary cross-entropy of the tags. [B, K] -> scalar."""
        return multi_label_loss(logits, self.tags_of(labeled))

    def tags_of(self, batch: Batch) -> Tensor:
        """[B, K] uint8: 1 present, 0 absent; what shows only difficult objects is present, as in PSA's protocol."""
        assert batch.tags is not None
        return (batch.tags[:, list(self.classes.objects)] != 0).to(torch.uint8)

    # -------------------------------------------------------------- prediction

    def predict(self, image: Tensor) -> Tensor:
        """Class scores of whole images.

        Args:
            image: [B, 3, H, W] uint8, of any size.

        Returns:
            [B, K] float32 logits of the classes but the background.
        """
        logits: Tensor = self.network(self.normalize(image)).float()
        return logits

    def activations(self, image: Tensor) -> Tensor:
        """The maps of images at one scale: [B, 3, h, w] uint8 -> [B, K, h', w'], not negative."""
        return cast(LocalizationNetwork, self.network).maps(self.normalize(image))

    @torch.no_grad()
    def localize(self, image: Tensor, labels: Tensor) -> ScoreMaps:
        """The score maps of some classes, summed over scales and the mirrored image.

        Args:
            image: [3, H, W] uint8.
            labels: [N] class numbers.
        """
        image = image.as_subclass(Tensor)[None].to(self.device)
        config = self.config
        ((fine, coarse),) = multi_scale_maps(
            self.activations,
            image,
            [self.columns(labels)],
            config.map_scales,
            config.map_flip,
            config.output_stride,
        )
        return ScoreMaps(labels=labels.cpu(), fine=fine.cpu(), coarse=coarse.cpu())

    def tags(self, probabilities: Tensor) -> Tensor:
        """The tags of an image for which none are known: [K] probabilities -> [N] class numbers, at least one."""
        present = probabilities >= _PRESENT
        present[probabilities.argmax()] = True
        return torch.tensor(self.classes.objects, dtype=torch.int64)[present.cpu()]

    def framed_map(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        """The map of an image's one class in the square in which boxes are compared.

        Args:
            image: [3, H, W] uint8.
            maps: of that class alone.

        Returns:
            [FRAME, FRAME] from 0 to 1.
        """
        fine = maps.fine[None]
        low, high = fine.min(), fine.max()
        scaled = (fine - low) / (high - low + 1e-5)
        return functional.interpolate(scaled, size=(FRAME, FRAME), mode="bilinear", align_corners=False)[0, 0]

    def framed_boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """True boxes in the square of `framed_map`: [N, 4] half-open in an image of this size -> [N, 4]."""
        return boxes_in_frame(boxes, size, frame="squeezed")

    # -------------------------------------------------------------- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the tags of one image, its seed where there is a mask, and its box where it shows one object."""
        assert batch.tags is not None
        tags, logits = self.tags_of(batch), self.predict(batch.image)
        self.tag_scores.update(logits, batch.tags[:, list(self.classes.objects)])
        labels = torch.tensor(self.classes.objects)[tags[0].bool().cpu()]
        boxes = None if batch.boxes is None else batch.boxes[0]
        one_object = len(labels) == 1 and boxes is not None and len(boxes) == 1
        if batch.mask is None and not one_object:
            return
        maps = self.localize(batch.image[0], labels)
        if batch.mask is not None:
            self.seed_scores.update(maps.fine, labels, batch.mask[0].cpu())
        if len(labels) == 1:
            self._score_single(batch, maps, logits[0].cpu())

    def _score_single(self, batch: Batch, maps: ScoreMaps, logits: Tensor) -> None:
        """The localisation of an image of one class: of its object, and of its pixels."""
        label = int(maps.labels[0])
        boxes = None if batch.boxes is None else batch.boxes[0]
        framed = self.framed_map(batch.image[0], maps)
        if boxes is not None and len(boxes) == 1:
            size = (batch.image.shape[-2], batch.image.shape[-1])
            truth = self.framed_boxes(boxes.cpu(), size)
            self.localization_scores.update(framed, truth, logits, int(self.columns(torch.tensor([label]))[0]))
            self.box_scores.update(framed, truth)
        if batch.mask is not None and bool((batch.mask[0] == label).any()):
            mask = functional.interpolate(batch.mask[None].float().cpu(), size=(FRAME, FRAME), mode="nearest")[0, 0]
            known = mask != IGNORE_INDEX
            self.pixel_scores.update(framed, torch.where(known, (mask == label).float(), mask).to(torch.uint8))

    def on_validation_epoch_end(self) -> None:
        """Log the scores for which there was truth."""
        tags = self.tag_scores.compute()
        self.results = {"map": tags.map, "ap": tags.ap, "images": tags.images}
        if self.seed_scores.images:
            seeds = self.seed_scores.compute()
            self.results |= seeds.named()
            self.log_by_class("iou", seeds.iou)
        if self.localization_scores.images:
            self.results |= self._box_results()
        if self.pixel_scores.images:
            pixels = self.pixel_scores.compute()
            self.results |= {"pxap": pixels.pxap, "peak_iou": pixels.peak_iou}
        metrics: tuple[Metric, ...] = (self.tag_scores, self.seed_scores, self.pixel_scores)
        for metric in (*metrics, self.localization_scores, self.box_scores):
            metric.reset()
        for name in ("seed_miou", "map", "gt_known"):
            if name in self.results:
                self.log(f"val/{name}", self.results[name], prog_bar=name == "seed_miou", rank_zero_only=True)

    def _box_results(self) -> dict[str, object]:
        """The scores of boxes, of images with one object."""
        results, boxes = self.localization_scores.compute(), self.box_scores.compute()
        best = results.best
        return {
            "gt_known": best.gt_known,
            "top1_localization": best.top1,
            # Among five classes every one is among the five best.
            **({"top5_localization": best.top5} if len(self.tag_names) > 5 else {}),
            "localization_threshold": best.threshold,
            "max_box_acc": boxes.max_box_acc,
            "max_box_acc_v2": boxes.max_box_acc_v2,
            "localized_images": results.images,
        }
