"""MARS: model-agnostic biased object removal without additional supervision.

Idea. Pseudo-masks made of image tags hold things that come with an object: the rails of a train, the sea of a boat.
Features that no label has formed tell rails from trains, so that two-means splits the pixels of a class in each image;
and rails are background in other images, so that of a class's parts those that are far from all backgrounds are the
object. Pixels of a mask unlike these lose their label. While the segmenter is trained they are filled in by a teacher,
the moving average of its weights, and count as much as the teacher is sure of the image's classes there.

Citation. Sanghyun Jo, In-Jae Yu, Kyungsu Kim: MARS: Model-agnostic Biased Object Removal without Additional Supervision
for Weakly-Supervised Semantic Segmentation. ICCV 2023.

Needs: masks (pseudo-masks of any method) + tags, which are derived from the masks where there are none. Gives: masks.

Published (VOC 2012, several scales and CRF): on RS+EPM with DeepLabv3+ and ResNet-101 77.7 val and 77.2 test, without
MARS 74.4 and 73.6; on IRN 69.8 / 70.9 (63.5 / 64.8), on SEAM 70.8 / 71.4 (64.5 / 65.7), on AdvCAM 70.3 / 71.2 (68.1 /
68.0). COCO 2014 val 49.4 on RS+EPM (46.4).

No code of the method was released. What the paper leaves open is chosen so: the mask is reduced to the grid of the
features by the most frequent class; vectors have length 1 in K-means; the similarity is stretched to 0..1 in each image
and refined by a two-label CRF with the parameters of DeepLab v2 (`binarization="threshold"`: cut at a half); the loss
is the mean over valid pixels; the teacher keeps 0.999, and the optimiser's numbers of the `paper` preset are those of
the authors' next release.

Departures: STEGO's head is trained on whole images of 224 pixels instead of five crops, and its features are the mean
over an image and its mirror image at one scale; Leopart's features are not there. `features="patches"` takes DINO's
features as they are, `"descriptor"` takes color and texture, for synthetic scenes. Tags that are derived from the masks
lack the classes that the masks have missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import resize

from labelwise.errors import UserError, require_at_least, require_share
from labelwise.losses.pixel import pixel_cross_entropy
from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.models.debiasing import debiased_centroids, image_centroids, reduce_mask, target_similarity
from labelwise.models.dense_crf import PRESETS, dense_crf, unary_from_logits, unary_from_softmax
from labelwise.models.pixel_features import DescriptorFeatures, HeadFeatures, PatchFeatures, PixelFeatures
from labelwise.models.stego import StegoHead, train_head
from labelwise.models.teacher import MeanTeacher
from labelwise.models.weights import check_keys, read_weights
from labelwise.samples import IGNORE_INDEX, Batch, Kind, Sample
from labelwise.tasks.deeplab import DeepLabConfig, DeepLabMethod
from labelwise.tasks.label_store import BIASED, LabelStore, StoredMaskView, require_room_for_biased

CRF = PRESETS["deeplab_v2"]
DEBIASED = 1
"""The version of the labels without biased pixels."""
HEAD_IMAGE = 224


def debiased_label(mask: Tensor, target: Tensor, background: int = 0) -> Tensor:
    """Take the label of object pixels that are not like the object (equation 4).

    Args:
        mask: [H, W] uint8, the pseudo-mask.
        target: [H, W] bool, True where a pixel is like its image's objects.
        background: its number.

    Returns:
        [H, W] uint8 with `BIASED` (-1 in the paper) where a label was taken; nothing else changes.
    """
    return mask.masked_fill((mask != background) & (mask != IGNORE_INDEX) & ~target, BIASED)


def complete_labels(mask: Tensor, probability: Tensor, label: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Fill biased pixels with the teacher's labels, weighted by its certainty of the image's classes (equations 6, 7).

    Args:
        mask: [B, H, W] uint8 with `BIASED` and 255.
        probability: [B, K, H, W] of the teacher.
        label: [B, H, W] int64, the teacher's refined labels.
        tags: [B, K] bool, the background's entry False.

    Returns:
        [B, H, W] int64 labels, and [B, H, W] float weights: 1 but on biased pixels, where it is the highest
        probability of a tagged class.
    """
    biased = mask == BIASED
    certainty = (probability * tags[:, :, None, None]).amax(1)
    return torch.where(biased, label, mask.long()), torch.where(biased, certainty, 1.0)


def weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """The sum of weight times cross-entropy over the number of labeled pixels (equation 8, as a mean).

    Args:
        logits: [B, K, H, W].
        label: [B, H, W] int64, 255 = ignore.
        weight: [B, H, W] float.
    """
    losses = pixel_cross_entropy(logits, label, IGNORE_INDEX)
    return (losses * weight).sum() / (label != IGNORE_INDEX).sum().clamp(min=1)


class MARS(DeepLabMethod):
    """Take biased pixels out of pseudo-masks, and let a teacher complete them."""

    card = Card(
        name="mars",
        title="Biased object removal",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS, Kind.TAGS}), dense=True),
        gives=frozenset({Kind.MASKS}),
        paper="Jo, Yu, Kim: MARS: Model-agnostic Biased Object Removal without Additional Supervision for "
        "Weakly-Supervised Semantic Segmentation, ICCV 2023",
        year=2023,
        idea="Of a class's pixels in pseudo-masks, those that look like other images' background lose their label; a "
        "teacher completes them during training.",
        published=tuple(
            Published(f"VOC 2012 {split}, pseudo-masks of {base}", "mIoU", value, "paper")
            for base, values in (
                ("RS+EPM, DeepLabv3+ ResNet-101", (77.7, 77.2)),
                ("IRN, DeepLab v2 ResNet-50", (69.8, 70.9)),
                ("SEAM, DeepLab v1 WideResNet-38", (70.8, 71.4)),
                ("AdvCAM, DeepLab v2 ResNet-101", (70.3, 71.2)),
            )
            for split, value in zip(("val", "test"), values, strict=True)
        ),
        claim=Claim(
            "On masks that hold the ground below objects, MARS beats plain training on the same masks.",
            baseline="supervised",
            labels="masks:all",
            paper_labels="masks:all",
            margin=5.0,
            scenes={"size": 48, "train": 320, "context": 0.9, "noise": "context", "noise_amount": 1.0, "single": True},
            baseline_options=("backbone", "output_stride", "crop", "steps", "batch_size"),
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(DeepLabConfig):
        """Options of MARS."""

        features: Literal["stego", "patches", "descriptor"] = "stego"
        "features of pixels: of a transformer with a STEGO head or without, or descriptors of color and texture"
        feature_model: str = "vit_base_patch8_224.dino"
        "timm name of the transformer that was trained without labels, such as vit_small_patch16_224.dino"
        feature_weights: str = "imagenet"
        "its weights: imagenet (timm's of that name), none, or a file in timm's naming"
        head_weights: str = "none"
        "file of a trained STEGO head; none = train one on the images"
        head_dimensions: int = 70
        "dimensions of the STEGO head"
        head_steps: int = 5000
        "steps of 16 images in training the STEGO head"
        foreground_clusters: int = 2
        "K_fg: parts into which the pixels of a class are split in each image"
        background_clusters: int = 2
        "K_bg: parts of each image's background"
        kept_share: float = 0.4
        "alpha: share of a class's parts, the farthest from all backgrounds first, that is taken for the object"
        distance: Literal["mean", "min"] = "mean"
        "from a part to the backgrounds: the mean (the paper's equation), or the nearest (its text)"
        binarization: Literal["crf", "threshold"] = "crf"
        "how the likeness to the object becomes a yes or no: by dense CRF, or above a half"
        refine_every: int = 1
        "every so many steps the teacher's labels are refined by dense CRF; 0 = never"
        keep: float = 0.999
        "share of the teacher that a step keeps"

        def __post_init__(self) -> None:
            """Refuse numbers that the method cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("foreground_clusters", "background_clusters", "head_dimensions", "head_steps"):
                require_at_least(name, getattr(self, name), 1)
            require_at_least("refine_every", self.refine_every, 0)
            for name in ("kept_share", "keep"):
                require_share(name, getattr(self, name))
            if not self.kept_share:
                raise UserError("--kept-share 0: must be above 0")

    config: Config
    store: LabelStore = LabelStore(Path())
    "the labels that are learned from; `prepare` says where"

    def build_training(self) -> None:
        """The teacher."""
        require_room_for_biased(self.classes)
        self.teacher = MeanTeacher(self.network, self.config.keep)

    @property
    def background(self) -> int:
        """The number of the background.

        Raises:
            UserError: the data set has none.
        """
        if self.classes.background is None:
            raise UserError("mars needs a class of the background, with which it compares; this data set has none")
        return self.classes.background

    def prepare(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Steps 1 and 2: find each class's debiased centroid and write the labels without biased pixels."""
        self.store = LabelStore(scratch / "labels")
        if self.store.holds(DEBIASED):
            return
        features = self._pixel_features(samples)
        centroids = self._debiased_centroids(samples, features)
        for index in range(len(samples)):
            sample = samples[index]
            self.store.write(
                DEBIASED, sample.id, self.debias(sample, features(sample.image.as_subclass(Tensor)), centroids)
            )
        self.store.finish(DEBIASED)

    def _pixel_features(self, samples: Sequence[Sample]) -> PixelFeatures:
        config = self.config
        if config.features == "descriptor":
            return DescriptorFeatures()
        patches = PatchFeatures(config.feature_model, config.feature_weights).to(self.device)
        if config.features == "patches":
            return patches
        # The same head whatever was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = StegoHead(patches.channels, config.head_dimensions).to(self.device)
        if config.head_weights != "none":
            path = Path(config.head_weights)
            state = read_weights(path)
            check_keys(path, "STEGO head", state, head.state_dict(), classifier=())
            head.load_state_dict(state)
        else:

            def features_of(numbers: Sequence[int]) -> Tensor:
                images = [resize(samples[number].image, [HEAD_IMAGE, HEAD_IMAGE]) for number in numbers]
                return patches.batch(torch.stack([image.as_subclass(Tensor) for image in images]).to(self.device))

            train_head(head, features_of, len(samples), steps=config.head_steps)
        return HeadFeatures(patches, head)

    def _debiased_centroids(self, samples: Sequence[Sample], features: PixelFeatures) -> dict[int, Tensor]:
        config = self.config
        found: dict[int, list[Tensor]] = defaultdict(list)
        for index in range(len(samples)):
            sample = samples[index]
            grid = features(sample.image.as_subclass(Tensor))
            assert sample.mask is not None
            parts = image_centroids(
                grid,
                reduce_mask(sample.mask.as_subclass(Tensor), (grid.shape[1], grid.shape[2])),
                tagged(sample),
                self.background,
                foreground_clusters=config.foreground_clusters,
                background_clusters=config.background_clusters,
            )
            for number, centroids in parts.items():
                found[number].append(centroids)
        every = {number: torch.cat(centroids) for number, centroids in found.items()}
        background = every.pop(self.background, None)
        if background is None:
            raise UserError("--data: no mask shows any background, with which mars compares; give other pseudo-masks")
        return debiased_centroids(every, background, config.kept_share, config.distance)

    def debias(self, sample: Sample, features: Tensor, centroids: dict[int, Tensor]) -> Tensor:
        """A sample's mask without the labels of biased pixels.

        Args:
            sample: with mask and tags.
            features: [D, h, w] of its image.
            centroids: class -> [D], of the object.

        Returns:
            [H, W] uint8 with `BIASED`.
        """
        assert sample.mask is not None
        mask = sample.mask.as_subclass(Tensor)
        own = [centroids[number] for number in tagged(sample) if number in centroids]
        if not own:
            return mask
        similarity = target_similarity(features, torch.stack(own))[None, None]
        likeness = functional.interpolate(similarity, mask.shape, mode="bilinear", align_corners=False)[0, 0]
        likeness = (likeness - likeness.min()) / (likeness.max() - likeness.min()).clamp(min=1e-6)
        if self.config.binarization == "crf":
            unary = unary_from_softmax(torch.stack([1 - likeness, likeness]))
            likeness = dense_crf(sample.image.as_subclass(Tensor), unary, CRF)[1]
        return debiased_label(mask, likeness.cpu() > 0.5, self.background)

    def streams(self) -> dict[str, Stream]:
        """Crops with the debiased labels, which `prepare` has written."""
        return {"labeled": Stream("labeled", StoredMaskView(self.weak_view(), partial(debiased_mask, self.store)))}

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Step 3: cross-entropy with the completed labels."""
        assert labeled.mask is not None and labeled.tags is not None
        image = self.normalize(labeled.image)
        theirs = self.teacher(image).float()
        tags = labeled.tags > 0
        tags[:, self.background] = False
        label = self._refined(labeled.image, theirs, labeled.mask == BIASED)
        completed, weight = complete_labels(labeled.mask, theirs.softmax(1), label, tags)
        biased = labeled.mask == BIASED
        self.observe(
            biased_share=biased.float().mean(), certainty=weight[biased].mean() if biased.any() else weight.mean()
        )
        return {"completed": weighted_cross_entropy(self.network(image), completed, weight)}

    def _refined(self, image: Tensor, logits: Tensor, biased: Tensor) -> Tensor:
        """The teacher's labels [B, H, W], after a CRF over each image with pixels to complete where it is its turn."""
        labels = logits.argmax(1)
        every = self.config.refine_every
        if not every or self.global_step % every:
            return labels
        for place in biased.flatten(1).any(1).nonzero().flatten().tolist():
            labels[place] = dense_crf(image[place], unary_from_logits(logits[place]), CRF).argmax(0)
        return labels

    def after_step(self) -> None:
        """Move the teacher towards the student."""
        self.teacher.update(self.network)


def debiased_mask(store: LabelStore, sample: Sample) -> Tensor:
    """A sample's mask without the labels of biased pixels, [H, W] uint8, as it was written."""
    return store.read(DEBIASED, sample.id)


def tagged(sample: Sample) -> list[int]:
    """The object classes that a sample is tagged with, those of difficult objects included."""
    assert sample.tags is not None
    return sample.tags.nonzero().flatten().tolist()
