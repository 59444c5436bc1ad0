"""IRNet: class boundaries, learned from unsure masks, that stop the random walk of score maps.

Idea. Class activation maps are sure of few pixels. Of these, pairs of nearby pixels are of one class or of two, and
where they are of two, a boundary lies somewhere on the line between them: that is all a network has to be told to find
boundaries. A random walk then spreads the maps to everything that no boundary separates. A second head learns for each
pixel the way to the centroid of its object, which the paper needs for instances.

Citation. Jiwoon Ahn, Sunghyun Cho, Suha Kwak: Weakly Supervised Learning of Instance Segmentation with Inter-pixel
Relations, CVPR 2019 (arXiv:1904.05044).

Needs: masks, with 255 where they are unsure (`labelwise refine --by confident` makes them of score maps). Gives: masks,
of images with score maps (`labelwise annotate RUN --data SEEDS`).

Published (VOC 2012 train, ResNet-50): mIoU of the seeds 48.3, of the masks after the walk 66.5; DeepLab v2 trained on
them: val 63.5, test 64.8.

    a_ij          1 - max of B on the line between i and j, for all pairs nearer than a radius
    L_affinity    1/4 mean_bg -log a + 1/4 mean_fg -log a + 1/2 mean_neg -log(1 - a)
    L_displaced   1/2 mean_fg |d_i - d_j - (j - i)| + 1/2 mean_bg |d_i - d_j|
    T             column-normalized W^beta, W the affinities within radius 5
    M*            (M (1 - B)) T^(2^log_steps), divided by its maximum over all classes

Trained at stride 4 with pairs up to 10 pixels apart, on a frozen backbone.

Departures: pairs that reach beyond the crop are dropped, the released code drops all pairs of a pixel some of whose
neighbors lie outside. Small images are padded on the right and below, not at random. The images whose mean displacement
is taken at the end are all whole, none is left out as a batch that is not full. Backbones other than ResNet give what
features they have. Images larger than the crop are padded to a multiple of the output stride. The walk is sparse (same
result). Instances are not made of the displacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Card, Needs, Published
from labelwise.models.backbones import create_backbone
from labelwise.models.cam import without_dilation
from labelwise.models.irn import STRIDE, IRNet
from labelwise.models.pixel_affinity import affinity_from_boundary, affinity_losses, displacement_losses
from labelwise.samples import Batch, Kind, Sample, ScoreMaps
from labelwise.tasks.refinement import RefinementConfig, RefinementMethod

_PAPER = "paper"


def walk_start(maps: Tensor, boundary: Tensor, power: float) -> Tensor:
    """What the walk starts from: score maps without what lies on boundaries.

    Args:
        maps: [N, h, w] from 0 to 1.
        boundary: [h, w] from 0 to 1.
        power: of the maps; 1 in the paper.

    Returns:
        [N, h, w].
    """
    return maps**power * (1 - boundary)


def with_background(walked: Tensor, size: Sequence[int], background: float) -> Tensor:
    """The scores of the classes at the image's size, and the background's constant one.

    Args:
        walked: [N, h, w] at stride 4, not negative.
        size: height and width of the image.
        background: its score, to which those of the classes are compared after a division by their maximum.

    Returns:
        [1 + N, H, W], the background first.
    """
    height, width = size
    enlarged = functional.interpolate(walked[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    cut = enlarged[:, :height, :width]
    scaled = cut / cut.max().clamp(min=torch.finfo(cut.dtype).tiny)
    return torch.cat([torch.full_like(scaled[:1], background), scaled])


class IRN(RefinementMethod):
    """IRNet for semantic segmentation."""

    card = Card(
        name="irn",
        title="IRNet: inter-pixel relations",
        task="refinement",
        needs=Needs(frozenset({Kind.MASKS}), dense=True),
        gives=frozenset({Kind.MASKS}),
        paper="Ahn, Cho, Kwak, Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, CVPR "
        "2019 (arXiv:1904.05044)",
        year=2019,
        idea="Learn class boundaries from pairs of pixels with sure labels, and spread score maps by a random walk "
        "that they stop.",
        published=(
            Published("VOC 2012 train, ResNet-50, seeds", "mIoU", 48.3, _PAPER),
            Published("VOC 2012 train, ResNet-50, masks after the walk", "mIoU", 66.5, _PAPER),
            Published("VOC 2012 val, DeepLab v2 on the masks", "mIoU", 63.5, _PAPER),
            Published("VOC 2012 test, DeepLab v2 on the masks", "mIoU", 64.8, _PAPER),
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(RefinementConfig):
        """Options of IRNet."""

        backbone: str = "resnet50"
        freeze_backbone: bool = True
        "train the two heads alone; has to be off for random weights"
        train_radius: int = 10
        "pixels of the map at stride 4 that are nearer to each other than this are compared in training"
        background: float = 0.25
        "score of the background after the walk; 0.22 in W-OoD"
        epochs: float = 3.0
        batch_size: int = 32
        head_multiplier: float = 10.0
        "learning rate of the displacement head, as a multiple"

        def __post_init__(self) -> None:
            """Refuse numbers that it cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            require_at_least("train_radius", self.train_radius, 2)
            require_share("background", self.background)

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The backbone, without dilation, and the two heads.

        Raises:
            UserError: the backbone has no feature of stride 4 or finer.
        """
        config = self.config
        weights = config.backbone_weights if pretrained else None
        backbone = create_backbone(config.backbone, config.output_stride, weights)
        without_dilation(backbone)
        try:
            return IRNet(backbone, frozen=config.freeze_backbone)
        except ValueError as error:
            raise UserError(f"--backbone {config.backbone}: {error}; --backbone resnet50 or mobilenetv2_100") from error

    @property
    def irnet(self) -> IRNet:
        """The network."""
        return cast(IRNet, self.network)

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """The losses of the affinities and of the displacements, over the pairs whose labels are sure."""
        radius = self.config.train_radius
        logits, displacement = self.irnet(self.normalize(labeled.image))
        pairs = self.pair_labels(labeled, (logits.shape[-2], logits.shape[-1]), radius)
        affinity = affinity_from_boundary(logits.float().sigmoid(), radius)
        return affinity_losses(affinity, pairs) | displacement_losses(displacement, pairs, radius)

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """The learning rate of a parameter as a multiple: `head_multiplier` in the displacement head, 1 elsewhere."""
        return self.config.head_multiplier if "displacement" in name.split(".") else 1.0

    @torch.no_grad()
    def complete(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Measure the mean displacement over the training images, which is taken away from then on."""
        self.network.eval()
        mean = self.irnet.displacement.mean
        mean.zero_()
        total = torch.zeros_like(mean, dtype=torch.float64)
        crop = self.config.crop
        for sample in samples:
            image = sample.image.as_subclass(Tensor)[None, :, :crop, :crop].to(self.device)
            total += self.irnet(self._padded(image))[1].double().mean((0, 2, 3))
        mean.copy_(total / max(1, len(samples)))

    def predict(self, image: Tensor) -> Tensor:
        """Affinities of nearby pixels at stride 4: [B, 3, H, W] uint8 -> [B, n, h, w]."""
        return affinity_from_boundary(self.boundary(image), self.config.radius)

    def boundary(self, image: Tensor) -> Tensor:
        """How likely class boundaries are, from the image and its mirror image.

        Args:
            image: [B, 3, H, W] uint8.

        Returns:
            [B, ceil(H / 4), ceil(W / 4)] float32 from 0 to 1.
        """
        height, width = (-(-length // STRIDE) for length in image.shape[-2:])
        logits = self.irnet.boundary_logits(self._padded(torch.cat([image, image.flip(-1)])))
        plain, mirrored = logits[:, :height, :width].float().chunk(2)
        return ((plain + mirrored.flip(-1)) / 2).sigmoid()

    def _padded(self, image: Tensor) -> Tensor:
        """Normalised images with zeros on the right and below, up to the size of the crops in training.

        Images that are larger are padded to a multiple of the output stride. The size matters: the heads normalise
        over all positions.
        """
        stride = max(self.config.output_stride, STRIDE)
        missing = [max(self.config.crop, -(-length // stride) * stride) - length for length in image.shape[-2:]]
        return functional.pad(self.normalize(image), (0, missing[1], 0, missing[0]))

    def refined(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        """The scores of the background and the maps' classes after the walk: [1 + N, H, W]."""
        (boundary,) = self.boundary(image[None])
        start = walk_start(maps.coarse.to(boundary), boundary, self.config.map_power)
        walked = self.walk(start, affinity_from_boundary(boundary, self.config.radius))
        return with_background(walked, image.shape[1:], self.config.background)
