"""What the methods of image classification share: views, prediction, validation, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from labelwise.datasets.base import Classes
from labelwise.datasets.derive import tags_of_labels, tags_of_mask
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.losses.tags import multi_label_loss
from labelwise.method import Method, MethodConfig, Stream
from labelwise.metrics.tags import ClassificationScores, TagScores
from labelwise.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from labelwise.samples import IGNORE_INDEX, Batch, Sample, Views
from labelwise.tasks.optimization import scheduled


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(MethodConfig):
    """Options of every trained classifier; the defaults are those of FD-MobileNet's ImageNet recipe."""

    loss: Literal["multi_label", "single_label"] = "multi_label"
    "any number of classes per image (binary cross-entropy of each), or exactly one (softmax cross-entropy)"
    threshold: float = 0.5
    "multi_label: probability from which a class counts as present where tags are written or shown"
    crop: int = 224
    "side in pixels of what the network sees: a random part of an image in training, its middle in evaluation"
    resize: int = 256
    "side in pixels to which an image's largest middle square is scaled before the evaluation's crop"
    scale_range: tuple[float, float] = (0.36, 1.0)
    "least and greatest share of an image's area that a training crop takes"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    "sgd has Nesterov momentum 0.9"
    learning_rate: float = 0.1
    "at the first step"
    schedule: Literal["step", "poly", "constant"] = "step"
    "of the learning rate: a tenth after each of equal parts, (1 - t/T)^0.9, or always the same"
    rate_drops: int = 3
    "step: how often the learning rate falls to a tenth; 3 = after each quarter"
    weight_decay: float = 4e-5
    "on all parameters"

    def __post_init__(self) -> None:
        """Refuse numbers that no classifier can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("crop", self.crop, 8)
        require_at_least("resize", self.resize, self.crop)
        require_share("threshold", self.threshold)
        for name in ("learning_rate", "rate_drops", "weight_decay"):
            require_at_least(name, getattr(self, name), 0)
        low, high = self.scale_range
        if not 0 < low <= high <= 1:
            raise UserError(f"--scale-range {low} {high}: must be two rising numbers above 0 and up to 1")


class ClassificationMethod(Method):
    """A method that ends in a network from images to one score per class, the background excepted.

    A subclass gives `build_network`, whose network takes normalised images [B, 3, H, W] and returns logits [B, K].
    """

    config: ClassificationConfig
    Config = ClassificationConfig

    def __init__(
        self,
        config: ClassificationConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Method`; also makes the validation scores."""
        super().__init__(config, classes, training=training, earlier=earlier, initial=initial)
        self.normalize = PixelNormalization(*self.pixel_statistics)
        self.scores = ClassificationScores(self.tag_names)

    @property
    def tag_names(self) -> tuple[str, ...]:
        """The names of the K classes that have a score: all but the background."""
        return tuple(self.classes.names[number] for number in self.classes.objects)

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of RGB in 0..1 with which images are normalised."""
        return IMAGENET_MEAN, IMAGENET_STD

    def streams(self) -> dict[str, Stream]:
        """One stream of tagged images: a random part of each, scaled to the crop, flipped half of the time."""
        return {"labeled": Stream("labeled", self.tagged_view)}

    def tagged_view(self, sample: Sample) -> Views:
        """The augmented image and its tags; labels of stronger kinds are reduced to tags first."""
        tags = tags_of_sample(sample, self.classes)
        return Views(sample=Sample(id=sample.id, image=self.geometric()(sample.image), tags=tags))

    def geometric(self) -> v2.Transform:
        """The geometric augmentation: a random part of the image, scaled to the crop, and a flip."""
        config = self.config
        crop = v2.RandomResizedCrop(config.crop, scale=config.scale_range, antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the tags."""
        return {"tags": self.tag_loss(self.network(self.normalize(labeled.image)), labeled)}

    def tag_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """Binary cross-entropy of each known tag, or softmax cross-entropy of the one class of each image.

        Args:
            logits: [B, K].
            labeled: B images with tags.

        Raises:
            UserError: an image has not exactly one tag and `loss` is single_label.
        """
        tags = self._known_tags(labeled)
        if self.config.loss == "multi_label":
            return multi_label_loss(logits, tags)
        return cross_entropy(logits.float(), tags.argmax(1))

    def _known_tags(self, batch: Batch) -> Tensor:
        """The tags of the classes that have a score, [B, K] uint8; of single-label images checked."""
        assert batch.tags is not None
        tags = batch.tags[:, list(self.classes.objects)]
        if self.config.loss == "single_label":
            # What shows only difficult objects of a class is no second class.
            tags = tags.masked_fill(tags == IGNORE_INDEX, 0)
            for id, count in zip(batch.ids, tags.sum(1).tolist(), strict=True):
                if count != 1:
                    raise UserError(f"--loss single_label: image '{id}' has {count} tags, not one; take multi_label")
        return tags

    def predict(self, image: Tensor) -> Tensor:
        """Class scores of whole images.

        Args:
            image: [B, 3, H, W] uint8, of any size.

        Returns:
            [B, K] float32 logits of the classes but the background.
        """
        return self.network(self.normalize(self.evaluation_view(image))).float()

    def evaluation_view(self, image: Tensor) -> Tensor:
        """The middle of images: their largest middle square, scaled to `resize`, and of that the middle `crop` pixels.

        This is the usual "resize the shorter side, then crop the centre" without the parts that the crop would throw
        away, which of a very long image would be nearly everything.

        Args:
            image: [B, 3, H, W] uint8.

        Returns:
            [B, 3, crop, crop] uint8.
        """
        config = self.config
        square = functional.center_crop(image, [min(image.shape[-2:])])
        resized = functional.resize(square, [config.resize, config.resize], antialias=True)
        return functional.center_crop(resized, [config.crop])

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, K] logits -> [B, K] in 0..1: of each class by itself, or of single-label data summing to 1."""
        return logits.sigmoid() if self.config.loss == "multi_label" else logits.softmax(1)

    def tags(self, probabilities: Tensor) -> Tensor:
        """The tags that a prediction stands for.

        Args:
            probabilities: [B, K].

        Returns:
            [B, C] uint8 over all classes, 1 present, 0 absent: from `threshold` on, or the likeliest one.
        """
        if self.config.loss == "multi_label":
            present = probabilities >= self.config.threshold
        else:
            present = torch.zeros_like(probabilities, dtype=torch.bool)
            present.scatter_(1, probabilities.argmax(1, keepdim=True), True)
        tags = torch.zeros(len(present), len(self.classes), dtype=torch.uint8, device=present.device)
        tags[:, list(self.classes.objects)] = present.to(torch.uint8)
        return tags

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the prediction of one image."""
        logits = self.predict(batch.image)
        # The order of the probabilities without their ties at 0 and 1.
        single = self.config.loss == "single_label"
        self.scores.update(logits.log_softmax(1) if single else logits, self._known_tags(batch))

    def on_validation_epoch_end(self) -> None:
        """Log mean average precision, that of each class, and the accuracies of single-label data."""
        scores: TagScores = self.scores.compute()
        self.scores.reset()
        self.results = {name: value for name, value in asdict(scores).items() if value is not None}
        self.log("val/map", scores.map, prog_bar=True, rank_zero_only=True)
        for name in ("top1", "top5"):
            if name in self.results:
                self.log(f"val/{name}", self.results[name], rank_zero_only=True)
        self.log_by_class("ap", scores.ap)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, its rate multiplied by `rate_factor` at every step."""
        return scheduled(self.make_optimizer(), self.rate_factor)

    def make_optimizer(self) -> Optimizer:
        """SGD with Nesterov momentum 0.9, or AdamW; weight decay acts on all parameters."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        if self.config.optimizer == "adamw":
            return AdamW(self.parameters(), rate, weight_decay=decay)
        return SGD(self.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay)

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0, by the configured schedule."""
        config = self.config
        done = min(step, self.total_steps)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "poly":
            return float((1 - done / self.total_steps) ** 0.9)
        return float(0.1 ** min(config.rate_drops, (config.rate_drops + 1) * done // self.total_steps))


def tags_of_sample(sample: Sample, classes: Classes) -> Tensor:
    """The tags of a sample, or those that its labels of another kind stand for.

    Returns:
        [C] uint8, as `Sample.tags`.

    Raises:
        UserError: it has no label that tags can be derived from.
    """
    if sample.tags is not None:
        return sample.tags
    if sample.box_labels is not None:
        return tags_of_labels(sample.box_labels, classes, sample.difficult)
    if sample.mask is not None:
        return tags_of_mask(sample.mask, classes)
    labels = sample.point_labels if sample.instance_labels is None else sample.instance_labels
    if labels is None:
        raise UserError(f"image '{sample.id}' has no label that tells its tags; --labels tags:all")
    return tags_of_labels(labels, classes)
