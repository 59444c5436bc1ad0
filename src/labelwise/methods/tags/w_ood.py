"""W-OoD: images of no class, chosen for fooling the classifier, tell objects from what they always stand on.

Idea. A classifier of tags cannot tell a train from its rails: they come together. Images of rails without a train can.
Such hard out-of-distribution images, on which a classifier fires though they show none of the classes, are cheap: a
person has only to see that nothing is in them. A trained classifier goes on learning with two more terms: these images,
made a little harder still, have no class; and the features of an image move towards the centres of its own classes and
away from the nearest centres of clusters of such images. Its activation maps then leave the background out.

Citation. Lee, Oh, Yun, Choe, Kim, Yoon: Weakly Supervised Semantic Segmentation using Out-of-Distribution Data, CVPR
2022 (arXiv:2203.03860).

Needs: tags + images without any class. Gives: maps, and the masks and tags that they stand for. `ood` names the images;
`labelwise mine-ood` finds candidates. A classifier is trained first, or a run of `cam` is named (`classifier`).

Published (VOC 2012 train): seed mIoU 53.3 from IRNet's 48.8, 59.1 with AdvCAM from 55.6; DeepLab v2 on the masks 69.8
on val and 69.9 on test.

    z(x)    mean over positions of the last feature; P_in[c] its mean over the images of class c; P_ood the centres of
            K-means on images of no class; both by the initial classifier, fixed
    L_d     mean_ic y_ic |z_i - P_in[c]| 20 / K  -  mean_ik |z_i - P_ood[k]| [among the nearest 20 % of the batch]
    x'      x + 0.07 g / max|g|, g the gradient of the highest logits of images of no class
    L_ood   mean binary cross-entropy of the logits of x' against no class at all
    L       L_cls + 0.25 L_ood + 0.007 L_d

Maps and training are those of `cam`. What only the released code says: the nearest centres are those of the whole batch
(`per_image` is the paper's text), images of no class are made harder by a step along their gradient (`ascent`), and of
VOC those that look like a bottle are left out (`skip_classes`).

Departures: the last step's model is kept; the release keeps the one whose maps fit the masks of the training images
best. L_ood is divided by the batch's own size, which is 16 in the release. AdvCAM, which climbs along an image's own
gradient when maps are made, is not part of this. The classifier that is trained first learns its normalisations if it
starts from random weights, whatever `freeze_norms` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import InterpolationMode, resize

from labelwise.errors import UserError, did_you_mean, require_at_least, require_share
from labelwise.method import Card, Claim, Needs, Published, Stage, Stream
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.cam import CamNetwork, without_dilation
from labelwise.samples import Batch, Kind, Sample, Views
from labelwise.tasks.classification import tags_of_sample
from labelwise.tasks.localization import LocalizationConfig, LocalizationMethod

CAM = "cam"
CLASSES_OF_PAPER = 20
_CENTERS = "centers.safetensors"
_ON_TRAIN = "VOC 2012 train, ResNet-50"


def class_centers(features: Tensor, tags: Tensor) -> Tensor:
    """The mean feature of the images of each class; an image counts for each of its tags ("P_in").

    Args:
        features: [N, D] float.
        tags: [N, K] 0 or 1, other values count as 0.

    Returns:
        [K, D]; zeros for a class without any image.
    """
    present = (tags == 1).to(features)
    return present.T @ features / present.sum(0).clamp(min=1)[:, None]


def kmeans_lloyd(features: Tensor, clusters: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm with Euclidean distances, from the first samples on ("P_ood").

    Args:
        features: [N, D] float.
        clusters: K; of fewer samples there are as many clusters as samples.
        iterations: how often the samples are assigned to centres.

    Returns:
        [N] int64, the cluster of each sample, and [at most K, D], the means of the clusters. Those that are left empty
        are dropped.
    """
    centers = features[:clusters].double()
    samples, labels = features.double(), torch.zeros(len(features), dtype=torch.int64)
    counts = samples.new_zeros(len(centers))
    for _ in range(iterations):
        labels = torch.cdist(samples, centers).argmin(1)
        members = functional.one_hot(labels, len(centers)).to(samples)
        counts = members.sum(0)
        centers = torch.where(counts[:, None] > 0, members.T @ samples / counts.clamp(min=1)[:, None], centers)
    kept = counts > 0
    return (kept.cumsum(0) - 1)[labels], centers[kept].to(features)


def distance_loss(
    features: Tensor,
    tags: Tensor,
    own: Tensor,
    foreign: Tensor,
    share: float,
    *,
    per_image: bool = False,
) -> Tensor:
    """How much farther images are from the centres of their classes than from the nearest ones of no class ("L_d").

    Args:
        features: [B, D] float, with gradient.
        tags: [B, C]: 1 present, other values count as absent.
        own: [C, D] centres of the classes.
        foreign: [K, D] centres of images of no class.
        share: of the distances to `foreign`, the nearest count: 0 none, 1 all ("tau").
        per_image: choose the nearest centres of each image, as the paper says, not those of the whole batch.

    Returns:
        Scalar: mean of tag x distance over [B, C], times 20 / K, less the mean of chosen x distance over [B, K].
    """
    present = (tags == 1).to(features)
    to_own = (present * _distances(features, own)).mean() * (CLASSES_OF_PAPER / len(foreign))
    away = _distances(features, foreign)
    return to_own - (away * nearest(away.detach(), share, per_image=per_image)).mean()


def nearest(distances: Tensor, share: float, *, per_image: bool = False) -> Tensor:
    """The distances below the `share`-quantile, [B, K] as float 0 or 1 ("d < theta").

    Theta is the smallest of the floor((1 - share) n) largest distances that are not 0.

    Args:
        distances: [B, K].
        share: 0 to 1; all count where none would be left above the quantile.
        per_image: a quantile for each row instead of one for all.
    """
    rows = distances if per_image else distances.reshape(1, -1)
    # Rounded, because 0.8 of 800 is a little less than 640 in binary fractions.
    kept = int(round((1 - share) * rows.shape[1], 6))
    if not kept:
        return torch.ones_like(distances)
    largest = rows.topk(kept, dim=1).values
    theta = largest.masked_fill(largest == 0, float("inf")).amin(1, keepdim=True)
    return (rows < theta).to(distances).reshape(distances.shape)


def _distances(features: Tensor, centers: Tensor) -> Tensor:
    """[B, D], [K, D] -> [B, K] Euclidean; its gradient at distance 0 is 0."""
    return torch.cdist(features.float(), centers.float(), compute_mode="donot_use_mm_for_euclid_dist")


def adversarial_climb(image: Tensor, gradient: Tensor, step: float) -> Tensor:
    """A step along a gradient, scaled by its largest entry, within the range of the images.

    Args:
        image: [B, 3, H, W] float, normalised.
        gradient: of the same shape.
        step: the largest change of any value.

    Returns:
        [B, 3, H, W], without gradient.
    """
    moved = image + step * gradient / (gradient.abs().amax() + 1e-12)
    return moved.clamp(image.amin(), image.amax()).detach()


def ood_loss(logits: Tensor, skip_classes: Collection[int] = ()) -> Tensor:
    """Binary cross-entropy against no class at all ("L_ood").

    Args:
        logits: [B, C] of images of no class.
        skip_classes: images whose highest logit is of one of these are left out.

    Returns:
        Scalar: the sum over images of the mean over classes, divided by B.
    """
    losses = functional.softplus(logits.float()).mean(1)
    skipped = torch.isin(logits.argmax(1), torch.tensor(sorted(skip_classes), device=logits.device, dtype=torch.long))
    return (losses * ~skipped).sum() / len(logits)


class CenteredNetwork(CamNetwork):
    """A classifier that keeps the centres of its classes' features, and those of images of no class.

    The buffer `foreign` has a row for each cluster; the first `found` count.
    """

    own: Tensor
    foreign: Tensor
    found: Tensor

    def __init__(self, backbone: Backbone, classes: int, clusters: int) -> None:
        super().__init__(backbone, classes)
        channels = backbone.channels[-1]
        self.register_buffer("own", torch.zeros(classes, channels))
        self.register_buffer("foreign", torch.zeros(clusters, channels))
        self.register_buffer("found", torch.zeros((), dtype=torch.int64))

    def keep_centers(self, own: Tensor, foreign: Tensor) -> None:
        """Store [K, C] centres of the classes and [at most clusters, C] of images of no class."""
        self.own.copy_(own)
        self.foreign[: len(foreign)] = foreign
        self.found.fill_(len(foreign))


class WOoD(LocalizationMethod):
    """A trained classifier that goes on learning with images of no class."""

    card = Card(
        name="w_ood",
        title="W-OoD: Weakly Supervised Semantic Segmentation using Out-of-Distribution Data",
        task="localisation",
        needs=Needs(frozenset({Kind.TAGS}), ood=True),
        gives=frozenset({Kind.MAPS, Kind.MASKS, Kind.TAGS}),
        paper="Lee, Oh, Yun, Choe, Kim, Yoon, Weakly Supervised Semantic Segmentation using Out-of-Distribution Data, "
        "CVPR 2022 (arXiv:2203.03860)",
        year=2022,
        idea="Hard images of no class, as negatives and as clusters to keep away from, teach a classifier to leave out "
        "the background that always comes with a class.",
        published=(
            Published(_ON_TRAIN, "seed mIoU", 53.3, "CVPR paper"),
            Published(f"{_ON_TRAIN}, with AdvCAM", "seed mIoU", 59.1, "CVPR paper"),
            Published("VOC 2012 val, DeepLab v2 on its masks, with AdvCAM", "mIoU", 69.8, "CVPR paper"),
            Published("VOC 2012 test, DeepLab v2 on its masks, with AdvCAM", "mIoU", 69.9, "CVPR paper"),
        ),
        claim=Claim(
            "Where a class always comes with the same background, W-OoD gives better seeds than a classifier that is "
            "trained on for as many steps.",
            baseline=CAM,
            labels="tags:all",
            paper_labels="tags:all",
            # 5 points of the IoU of the one class of three, and the background, that has such a background.
            margin=1.25,
            scenes={"scenes": "rails", "size": 40, "train": 300, "val": 150, "ood": 100},
            baseline_options=("backbone", "output_stride", "crop", "resize_range", "batch_size", "learning_rate"),
            # As many as both runs of W-OoD; where a preset counts steps, that of cam has twice as many already.
            baseline_settings={"epochs": 10.0},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(LocalizationConfig):
        """Options of W-OoD; the defaults are those of the released code for VOC 2012."""

        ood: str = "ood"
        "the images of no class: a split of the data set, a folder of images, or a text file that lists some"
        classifier: str = CAM
        "what it starts from: cam = a classifier that is trained first, or the folder of a finished run of cam"
        ood_weight: float = 0.25
        "of the images of no class"
        distance_weight: float = 0.007
        "lambda, of the distances to the centres; ten times more diverges"
        clusters: int = 50
        "K, of the images of no class"
        nearest_share: float = 0.2
        "tau: share of the distances to the clusters, the nearest, that are made longer"
        per_image: bool = False
        "choose the nearest clusters of each image (paper), not of the whole batch (released code)"
        ascent: float = 0.07
        "step by which images of no class are made harder, in units of normalised pixels"
        skip_classes: tuple[str, ...] = ()
        "images of no class that look like one of these classes are left out; bottle on VOC"
        ood_side: int = 500
        "length in pixels of the long side of images of no class when their clusters are found"

        def __post_init__(self) -> None:
            """Refuse numbers that no training can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name, least in (("ood_weight", 0), ("distance_weight", 0), ("ascent", 0), ("clusters", 1)):
                require_at_least(name, getattr(self, name), least)
            require_share("nearest_share", self.nearest_share)
            require_at_least("ood_side", self.ood_side, 8)

    config: Config

    @classmethod
    def stages(cls, config: WOoD.Config) -> tuple[Stage, ...]:
        """The ordinary classifier."""
        loaded = config.backbone_weights != "none"
        return (Stage("classifier", CAM, CAM, {"freeze_norms": config.freeze_norms and loaded}),)

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The classifier of `cam`; its weights are those of the run before."""
        config = self.config
        backbone = create_backbone(config.backbone, config.output_stride, None)
        without_dilation(backbone)
        return CenteredNetwork(backbone, len(self.tag_names), config.clusters)

    def build_training(self) -> None:
        """Start from the ordinary classifier.

        Raises:
            UserError: it is another network, or a class to skip is none of this data set's.
        """
        super().build_training()
        for name in self.config.skip_classes:
            if name not in self.tag_names:
                raise UserError(f"--skip-classes {name}: no such class{did_you_mean(name, self.tag_names)}")
        self.skipped = [self.tag_names.index(name) for name in self.config.skip_classes]
        state = self.earlier["classifier"].network.state_dict()
        centers = dict(self._centered.named_buffers(recurse=False))
        try:
            self.network.load_state_dict({**state, **centers})
        except RuntimeError as error:
            raise UserError(
                f"--classifier {self.config.classifier}: is not a run of cam with --backbone {self.config.backbone}"
            ) from error

    def prepare(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Find the centres by the initial classifier; they are kept for when the run goes on.

        Args:
            samples: the tagged images.
            scratch: where they are kept.
        """
        path = scratch / _CENTERS
        if not path.is_file():
            features, tags = self._features_and_tags(samples)
            own = class_centers(features, tags)
            foreign = kmeans_lloyd(self._features(map(self._sized, self.ood_samples)), self.config.clusters)[1]
            unfinished = path.with_suffix(".partial")
            save_file({"own": own, "foreign": foreign}, unfinished)
            unfinished.replace(path)
        self._centered.keep_centers(**load_file(path))

    def streams(self) -> dict[str, Stream]:
        """Tagged crops, and as many of images of no class."""
        return {**super().streams(), "ood": Stream("ood", self.bare_view)}

    def bare_view(self, sample: Sample) -> Views:
        """The augmented image."""
        return Views(sample=Sample(id=sample.id, image=self.augmentation()(sample.image)))

    def losses(self, labeled: Batch, ood: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        """Tags, images of no class, distances (one step of the specification)."""
        config, network = self.config, self._centered
        features = network.features(self.normalize(labeled.image))
        foreign = network.foreign[: int(network.found)]
        distances = distance_loss(
            features.mean((2, 3)),
            self.tags_of(labeled),
            network.own,
            foreign,
            config.nearest_share,
            per_image=config.per_image,
        )
        logits = network(self._climbed(self.normalize(ood.image)))
        self.observe(ood_probability=logits.detach().sigmoid().amax(1).mean())
        return {
            "tags": self.tag_loss(network.logits(features), labeled),
            "ood": config.ood_weight * ood_loss(logits, self.skipped),
            "distance": config.distance_weight * distances,
        }

    def _climbed(self, image: Tensor) -> Tensor:
        """Images of no class, changed so that they look more like the class that they look like."""
        image = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.network(image).amax(1).sum(), image)
        return adversarial_climb(image, gradient, self.config.ascent)

    @property
    def _centered(self) -> CenteredNetwork:
        return cast(CenteredNetwork, self.network)

    def _features_and_tags(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Features [N, C] and tags [N, K] of images as they are."""
        tags: list[Tensor] = []

        def noted(sample: Sample) -> Tensor:
            tags.append(tags_of_sample(sample, self.classes)[list(self.classes.objects)])
            return sample.image

        features = self._features(map(noted, samples))
        return features, torch.stack(tags)

    def _sized(self, sample: Sample) -> Tensor:
        """The image of a sample with the long side of `ood_side`."""
        height, width = sample.image.shape[-2:]
        scale = self.config.ood_side / max(height, width)
        size = [max(1, round(side * scale)) for side in (height, width)]
        return resize(sample.image, size, InterpolationMode.BICUBIC, antialias=True)

    @torch.no_grad()
    def _features(self, images: Iterable[Tensor]) -> Tensor:
        """The mean feature of each image by the network as it is now, [N, C]."""
        training = self.training
        self.eval()
        rows = [
            self._centered.features(self.normalize(image.as_subclass(Tensor)[None].to(self.device))).mean((2, 3)).cpu()
            for image in images
        ]
        self.train(training)
        return torch.cat(rows)
