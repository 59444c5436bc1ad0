"""BAS: a map of an object is right when the rest of the image no longer activates its class.

Idea. A classifier is cut in two. Its early part feeds a generator of one sigmoid map per class. The map of the image's
class is scored not by how well the masked features are classified, which a map of the most telling part satisfies, but
by activation: where the map is removed from the features, the late part should activate the class far less than on the
whole image. That falls on until the map reaches the object's border. An area term keeps the map from growing over
everything; guidance (the map times the activations of the classes still tells the class) keeps it from vanishing early.

Citation. Wu, Zhai, Cao: Background Activation Suppression for Weakly Supervised Object Localization, CVPR 2022; Zhai,
Wu, Zhu, Cao, Wu, Zha: Background Activation Suppression for Weakly Supervised Object Localization and Semantic
Segmentation, IJCV 2023 (arXiv:2309.12943).

Needs: tags; exactly one per image in the localization track. Gives: maps, and the masks and tags that they stand for.

Published: GT-known localisation on CUB-200-2011 95.13 and on ILSVRC 71.77 with ResNet-50, where plain class activation
maps have 57.35 and 51.86; VOC 2012 train seeds of 57.7 mIoU together with the maps of a plain classifier.

    F = early(x)    Z = classifier(late(F))    s = mean over positions of Z    M = sigmoid(generator(F))    m = M[y]
    S     = ReLU(s[y]), a constant
    S_bg  = ReLU(mean of Z'[y]), Z' = classifier'(late'(F' (1 - m))); F' and all weights of late', classifier' constant
    L_bas = S_bg / (S + 1e-8), or the constant 1 where S_bg > S
    L_frg = CE(mean over positions of Z m, y)          m averaged down to the grid of Z
    L     = L_cls + alpha L_frg + L_bas + beta mean(m)
    localization   L_cls = CE(s, y); map at test: mean of the maps of the K best classes
    segmentation   y is drawn from the tags at each step; L_cls = sum over tags c of -log(e^s_c / (e^s_c + sum over
                   absent n of e^s_n)); Z is a constant in L_frg; maps of scales and mirrored copies are added like
                   class activation maps, then added to those of a plain classifier (`classifier`)

The defaults are those of VOC 2012 but for the optimiser's biases. The form is the extension's: no ReLU follows the
classifier. VGG-16, ResNet-50, MobileNetV1 and InceptionV3 have the paper's strides in the localization track; of other
backbones the maps are made of the second-last feature, or of `map_stride`.

Departures: the last step's model is kept; the release picks the epoch that is best on the test set. At test an image is
squeezed to the crop as a whole, where the paper squeezes it to 256 and cuts out 224 pixels. Class scores are those of
one crop, not of ten. In the segmentation track the release trains no bias at all (its optimiser leaves them out); here
all are trained. The erased features are normalised by the statistics of their own batch, as in the release, and leave
no trace in the running ones. In the localization track `map_scales` and `map_flip` have no meaning. A plain classifier
whose maps are added is part of the saved network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torchvision.transforms.v2.functional import resize

from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published, Stage
from labelwise.models.backbones import create_backbone
from labelwise.models.bas import CUTS, Activations, BasNetwork, create_network, split_backbone
from labelwise.models.cam import (
    COARSE_STRIDE,
    CamNetwork,
    divided_by_maximum,
    multi_scale_maps,
    without_dilation,
)
from labelwise.samples import Batch, Kind, Sample, ScoreMaps, Views
from labelwise.tasks.localization import FRAME, LocalizationConfig, LocalizationMethod

CAM, NONE = "cam", "none"


def erase_score(features: Tensor, mask: Tensor, late: nn.Module, labels: Tensor) -> Tensor:
    """The activation of a class that is left where a map is removed from the features ("S_bg").

    Neither the features nor the weights of the late part get a gradient, and its running statistics stay.

    Args:
        features: [B, C, h, w].
        mask: [B, 1, h, w] in 0..1, with gradient.
        late: features -> [B, K, h', w'] activations of the classes.
        labels: [B] int64, columns of the K.

    Returns:
        [B], not negative.
    """
    constants = {name: parameter.detach() for name, parameter in late.named_parameters()}
    # Copies, because normalisation in training writes into its running statistics.
    constants |= {name: buffer.clone() for name, buffer in late.named_buffers()}
    activations = functional_call(late, constants, (features.detach() * (1 - mask),))
    return activations.float().mean((2, 3)).gather(1, labels[:, None])[:, 0].relu()


def bas_ratio(whole: Tensor, erased: Tensor, eps: float = 1e-8, over: float = 1.0) -> Tensor:
    """The share of a class's activation that is left ("L_bas"), or a constant where there is more than before.

    Args:
        whole: [B], of the whole image ("S"); gets no gradient.
        erased: [B], of the image without the map.
        eps: added to `whole`.
        over: the constant: 1 in the extension, 0 in the first release.

    Returns:
        [B].
    """
    whole = whole.detach()
    return torch.where(erased > whole, over, erased / (whole + eps))


def foreground_guidance(class_maps: Tensor, mask: Tensor) -> Tensor:
    """Scores of the classes within a map.

    Args:
        class_maps: [B, K, h, w] ("Z").
        mask: [B, 1, H, W]; averaged down to h x w where it is finer.

    Returns:
        [B, K].
    """
    return (class_maps * functional.adaptive_avg_pool2d(mask, (class_maps.shape[-2], class_maps.shape[-1]))).mean(
        (2, 3)
    )


def multilabel_ce(scores: Tensor, tags: Tensor) -> Tensor:
    """Softmax cross-entropy of each tag against all absent classes, summed over tags; the batch's mean.

    Args:
        scores: [B, K].
        tags: [B, K]: 1 present, 0 absent, others are left out of both.

    Returns:
        Scalar; with one tag per image the ordinary cross-entropy.
    """
    absent = scores.float().masked_fill(tags != 0, -torch.inf).logsumexp(1, keepdim=True)
    return (functional.softplus(absent - scores.float()) * (tags == 1)).sum(1).mean()


def topk_map(maps: Tensor, scores: Tensor, k: int, labels: Tensor | None = None) -> Tensor:
    """The mean of the maps of the classes with the highest scores.

    Args:
        maps: [B, K, h, w].
        scores: [B, K].
        k: how many; more than there are means all.
        labels: [B] int64; where given and k is 1, the maps of these classes.

    Returns:
        [B, 1, h, w].
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    if labels is not None and k == 1:
        best = labels[:, None]
    return maps[torch.arange(len(maps), device=maps.device)[:, None], best].mean(1, keepdim=True)


def min_max(maps: Tensor) -> Tensor:
    """Stretch each map to 0..1. [B, 1, h, w] -> [B, 1, h, w]; a constant map becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-5)


def combine_maps(bas: Tensor, cam: Tensor) -> Tensor:
    """Add two maps, each divided by its maximum, and divide the sum by its own. [n, H, W] twice -> [n, H, W]."""
    return divided_by_maximum(divided_by_maximum(bas) + divided_by_maximum(cam))


class BAS(LocalizationMethod):
    """A classifier with a generator of maps that suppress what is left of a class outside them."""

    card = Card(
        name="bas",
        title="BAS: Background Activation Suppression for Weakly Supervised Object Localization",
        task="localisation",
        needs=Needs(frozenset({Kind.TAGS})),
        gives=frozenset({Kind.MAPS, Kind.MASKS, Kind.TAGS}),
        paper="Wu, Zhai, Cao, Background Activation Suppression for Weakly Supervised Object Localization, CVPR 2022; "
        "extended in IJCV 2023 (arXiv:2309.12943)",
        year=2022,
        idea="Learn a map for each class so that the rest of the image activates that class as little as possible, "
        "with as small a map as that takes.",
        published=(
            Published("CUB-200-2011 test, ResNet-50", "GT-known", 95.13, "CVPR paper"),
            Published("CUB-200-2011 test, VGG-16", "GT-known", 91.07, "CVPR paper"),
            Published("CUB-200-2011 test, MobileNetV1", "GT-known", 92.35, "CVPR paper"),
            Published("CUB-200-2011 test, InceptionV3", "GT-known", 92.24, "CVPR paper"),
            Published("ILSVRC val, ResNet-50", "GT-known", 71.77, "CVPR paper"),
            Published("ILSVRC val, ResNet-50", "top-1 localisation", 57.18, "CVPR paper"),
            Published("VOC 2012 train, with the maps of a classifier", "seed mIoU", 57.7, "IJCV extension"),
            Published("VOC 2012 val, DeepLab v2 on its masks", "mIoU", 69.6, "IJCV extension"),
        ),
        claim=Claim(
            "Where a small part tells an object's class, BAS boxes the whole object far more often than the class "
            "activation maps of the same network.",
            baseline=CAM,
            labels="tags:all",
            paper_labels="tags:all",
            margin=15.0,
            scenes={"scenes": "heads", "size": 56, "train": 300, "val": 150},
            baseline_options=("backbone", "output_stride", "crop", "resizing", "resize_range", "steps", "batch_size"),
            score="gt_known",
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(LocalizationConfig):
        """Options of BAS; the defaults are those of its segmentation track on VOC 2012."""

        track: Literal["localization", "segmentation"] = "segmentation"
        "one object's class per image and its box, or several tags and their masks"
        guidance_weight: float = 0.2
        "alpha, of the guidance by the classifier"
        area_weight: float = 1.2
        "beta, of the map's area"
        hidden: int = 1024
        "localization: channels of the classifier's two 3x3 convolutions"
        map_stride: int = 0
        "pixels of the image per pixel of a map; 0 = that of the second-last feature, or the paper's"
        top_k: int = 1
        "localization: average the maps of so many best classes at test; 1 = the map of the given class"
        classifier: str = NONE
        "segmentation: maps that are added: none, cam = those of a classifier trained first, or a run of cam"
        rate_drops: tuple[float, ...] = ()
        "shares of the training after each of which the learning rate falls to a tenth, instead of the schedule"
        bias_multiplier: float = 1.0
        "learning rate of biases, as a multiple of that of weights; 2 in the localization track"
        nesterov: bool = False
        "Nesterov's form of the momentum"
        crop: int = 448
        resizing: Literal["long_side", "square"] = "square"
        resize_range: tuple[int, int] = (512, 512)
        learning_rate: float = 0.005
        freeze_norms: bool = False

        def __post_init__(self) -> None:
            """Refuse numbers that no training can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("guidance_weight", "area_weight", "map_stride", "bias_multiplier"):
                require_at_least(name, getattr(self, name), 0)
            for name in ("hidden", "top_k"):
                require_at_least(name, getattr(self, name), 1)
            if not all(0 < share < 1 for share in self.rate_drops):
                raise UserError(f"--rate-drops {' '.join(map(str, self.rate_drops))}: must be between 0 and 1")
            if self.nesterov and not self.momentum:
                raise UserError("--nesterov: has no meaning without a momentum; --momentum 0.9")
            if self.single and self.classifier != NONE:
                raise UserError(f"--classifier {self.classifier}: only maps of the segmentation track are added to its")

        @property
        def single(self) -> bool:
            """Whether an image has exactly one class."""
            return self.track == "localization"

    config: Config

    @classmethod
    def stages(cls, config: BAS.Config) -> tuple[Stage, ...]:
        """The plain classifier whose maps are added, if that is wanted."""
        return () if config.classifier == NONE else (Stage("classifier", CAM, CAM),)

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The cut backbone with its two heads, and the plain classifier, whose weights come with the run."""
        config, count = self.config, len(self.tag_names)
        weights = config.backbone_weights if pretrained else None
        hidden = config.hidden if config.single else 0
        if config.single and not config.map_stride and config.backbone.partition(".")[0] in CUTS:
            return create_network(config.backbone, weights, count, hidden)
        backbone = create_backbone(config.backbone, config.output_stride, weights)
        without_dilation(backbone)
        network = BasNetwork(split_backbone(backbone, config.backbone, config.map_stride), count, hidden)
        if config.classifier != NONE:
            plain = create_backbone(config.backbone, config.output_stride, None)
            without_dilation(plain)
            network.plain = CamNetwork(plain, count).requires_grad_(False)
        return network

    def build_training(self) -> None:
        """Freeze what stays fixed, and take over the plain classifier.

        Raises:
            UserError: the plain classifier is another network.
        """
        super().build_training()
        if self.config.classifier == NONE:
            return
        try:
            cast(CamNetwork, self._bas.plain).load_state_dict(self.earlier["classifier"].network.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"--classifier {self.config.classifier}: is not a run of cam with --backbone {self.config.backbone}"
            ) from error

    @property
    def _bas(self) -> BasNetwork:
        return cast(BasNetwork, self.network)

    # ---------------------------------------------------------------- training

    def tagged_view(self, sample: Sample) -> Views:
        """As of every such method; in the localization track an image has exactly one tag.

        Args:
            sample: with labels.

        Raises:
            UserError: it has not.
        """
        views = super().tagged_view(sample)
        tags = views.sample.tags
        assert tags is not None
        count = int((tags[list(self.classes.objects)] == 1).sum())
        if self.config.single and count != 1:
            raise UserError(f"--track localization: image '{sample.id}' has {count} tags, not one; take segmentation")
        return views

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Classes, guidance, suppression and area (one step of the specification)."""
        config, tags = self.config, self.tags_of(labeled)
        result = self._bas.activations(self.normalize(labeled.image))
        shown = (tags == 1).any(1)
        labels = self._drawn(tags)
        mask = result.maps[torch.arange(len(labels)), labels][:, None]
        guidance, ratio = self._guidance(result, mask, labels), self._suppression(result, mask, labels)
        each = {
            "guidance": config.guidance_weight * guidance,
            "suppression": ratio,
            "area": config.area_weight * mask.mean((1, 2, 3)),
        }
        self.observe(coverage=mask.detach().mean())
        means = {name: (term * shown).sum() / shown.sum().clamp(min=1) for name, term in each.items()}
        return {"classes": self.tag_loss(result.logits, labeled), **means}

    def tag_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """Cross-entropy of each tag against the absent classes; of one tag the ordinary one. [B, K] -> scalar."""
        return multilabel_ce(logits, self.tags_of(labeled))

    def _drawn(self, tags: Tensor) -> Tensor:
        """One of the tags of each image; of an image without any an arbitrary class. [B, K] -> [B] int64."""
        present = (tags == 1).float()
        chances = torch.where(present.any(1, keepdim=True), present, 1.0)
        return torch.multinomial(chances, 1)[:, 0]

    def _guidance(self, result: Activations, mask: Tensor, labels: Tensor) -> Tensor:
        """[B]: cross-entropy of the class within the map."""
        class_maps = result.class_maps if self.config.single else result.class_maps.detach()
        return functional.cross_entropy(foreground_guidance(class_maps, mask).float(), labels, reduction="none")

    def _suppression(self, result: Activations, mask: Tensor, labels: Tensor) -> Tensor:
        """[B]: the share of the class's activation that is left outside the map."""
        whole = result.logits.float().gather(1, labels[:, None])[:, 0].relu()
        return bas_ratio(whole, erase_score(result.features, mask, self._bas.late_part, labels))

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step: a tenth after each of `rate_drops`, or by the schedule."""
        drops = self.config.rate_drops
        if not drops:
            return super().rate_factor(step)
        return float(0.1 ** sum(step >= share * self.total_steps for share in drops))

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """As of every such method, times `bias_multiplier` for biases."""
        multiplier = self.config.bias_multiplier if name.endswith(".bias") else 1.0
        return multiplier * super().rate_multiplier(name, parameter)

    def make_optimizer(self, groups: list[dict[str, object]]) -> Optimizer:
        """SGD, with Nesterov's momentum if so configured, or AdamW."""
        if self.config.nesterov and self.config.optimizer == "sgd":
            return SGD(groups, momentum=self.config.momentum, nesterov=True)
        return super().make_optimizer(groups)

    # -------------------------------------------------------------- prediction

    def predict(self, image: Tensor) -> Tensor:
        """Class scores of whole images; in the localization track squeezed to the crop. As of every such method."""
        return super().predict(self._squeezed(image) if self.config.single else image)

    @torch.no_grad()
    def localize(self, image: Tensor, labels: Tensor) -> ScoreMaps:
        """The score maps of some classes.

        Args:
            image: [3, H, W] uint8.
            labels: [N] class numbers.
        """
        if self.config.single:
            maps = self._single_maps(image, self.columns(labels))
            sides = tuple(image.shape[-2:])
            fine, coarse = (_resized(maps, size) for size in (sides, [-(-side // COARSE_STRIDE) for side in sides]))
            return ScoreMaps(labels=labels.cpu(), fine=divided_by_maximum(fine), coarse=divided_by_maximum(coarse))
        own = super().localize(image, labels)
        if self.config.classifier == NONE:
            return own
        fine, coarse = self._plain_maps(image, self.columns(labels))
        return replace(own, fine=combine_maps(own.fine, fine), coarse=combine_maps(own.coarse, coarse))

    @torch.no_grad()
    def framed_map(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        """As of every such method; in the localization track stretched to 0..1 before it is scaled to the frame."""
        if not self.config.single:
            return super().framed_map(image, maps)
        return _resized(self._single_maps(image, self.columns(maps.labels)), (FRAME, FRAME))[0]

    def _single_maps(self, image: Tensor, columns: Tensor) -> Tensor:
        """[3, H, W] uint8 -> [N, 1, h, w] in 0..1: for each of N classes its map, or the mean of the best classes'."""
        squeezed = self._squeezed(image.as_subclass(Tensor)[None].to(self.device))
        result = self._bas.activations(self.normalize(squeezed))
        count = len(columns)
        maps, scores = result.maps.expand(count, -1, -1, -1), result.logits.expand(count, -1)
        return min_max(topk_map(maps.float(), scores, self.config.top_k, columns.to(self.device))).cpu()

    def _squeezed(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, 3, crop, crop]: the whole images as large as what the network was trained on."""
        return resize(image, [self.config.crop, self.config.crop], antialias=True)

    def _plain_maps(self, image: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The plain classifier's fine and coarse maps, as those of `localize`."""
        plain = cast(CamNetwork, self._bas.plain)
        batch = image.as_subclass(Tensor)[None].to(self.device)
        ((fine, coarse),) = multi_scale_maps(
            lambda scaled: plain.maps(self.normalize(scaled)),
            batch,
            [columns],
            self.config.map_scales,
            self.config.map_flip,
            self.config.output_stride,
        )
        return fine.cpu(), coarse.cpu()


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[N, 1, h, w] -> [N, *size]."""
    return functional.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)[:, 0]
