"""R-CNN on regions: semantic segmentation by the features of a window classifier.

Idea. Regions are proposed without any learning. R-CNN's network, fine-tuned on windows of images with boxes, sees each
region twice: the warped window of its box as it is ("full"), and with the mean color wherever the region is not ("fg").
On both features together a linear support vector regression per class learns how well the region covers the class; the
best regions are pasted, the stronger ones on top. The frame is that of O2P (Carreira et al., ECCV 2012).

Citation. Ross Girshick, Jeff Donahue, Trevor Darrell, Jitendra Malik: Rich feature hierarchies for accurate object
detection and semantic segmentation. CVPR 2014, section 5.

Needs: masks and boxes. Gives: masks.

Published (VOC 2011 val, mean IU): fc6 full 43.0, fg 43.7, full+fg 47.9; fc7 42.5, 42.1, 45.8. O2P itself 46.4.

The gradient training is the fine-tuning of R-CNN on boxes; nothing is fine-tuned on regions. Afterwards `complete` fits
the regressors on the regions of the training images and on the true mask of each class that an image shows.

Departures: regions are those of Selective Search, not of CPMC, which cannot be had. The paper leaves the pasting to
O2P, whose rule is not told in full: here the regions whose best class scores above `region_threshold` are pasted in
their order, `pasted` at most, but those that stronger ones cover by more than `region_overlap`. Scores of pixels are
the quality of the region that they belong to, for its class, and the threshold for the background. Options of training
crops, scales and windows have no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.models.fcn_networks import pixel_statistics
from labelwise.models.linear_svm import fit_svr
from labelwise.models.region_pasting import paste_regions, region_overlaps
from labelwise.models.selective_search import Mode, selective_search_regions
from labelwise.models.window_fitting import NORM
from labelwise.models.window_network import Layer, RegionNetwork, Strategy
from labelwise.samples import IGNORE_INDEX, Batch, Kind, Sample
from labelwise.tasks.instances import boxes_of_instances
from labelwise.tasks.proposal_sources import ProposalSource
from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod
from labelwise.tasks.windows import FineTuning, WindowConfig, window_body

_SOURCE = "CVPR 2014, arXiv v5"


class RCNNRegions(SegmentationMethod):
    """A window classifier whose features tell how well a region covers a class."""

    card = Card(
        name="rcnn_regions",
        title="R-CNN on regions",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS, Kind.BOXES}), dense=True),
        gives=frozenset({Kind.MASKS}),
        paper="Girshick, Donahue, Darrell, Malik: Rich feature hierarchies for accurate object detection and semantic "
        "segmentation, CVPR 2014, section 5",
        year=2014,
        idea="Features of a region's window and of the region alone tell a linear regressor per class how well it "
        "covers the class; the best regions are pasted.",
        published=(
            *(
                Published(f"VOC 2011 val, {layer} {strategy}", "mIoU", value, _SOURCE)
                for layer, strategy, value in (
                    ("fc6", "full", 43.0),
                    ("fc6", "fg", 43.7),
                    ("fc6", "full+fg", 47.9),
                    ("fc7", "full", 42.5),
                    ("fc7", "fg", 42.1),
                    ("fc7", "full+fg", 45.8),
                )
            ),
            Published("VOC 2011 test, fc6 full+fg", "mIoU", 47.9, _SOURCE),
        ),
        claim=Claim(
            "Features of the region alone beside those of its window beat those of the window.",
            baseline="rcnn_regions",
            labels="masks:all+boxes:all",
            paper_labels="masks:all+boxes:all",
            scenes={"scenes": "objects", "size": 96, "train": 240, "val": 120},
            baseline_settings={"strategy": "full"},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(SegmentationConfig, WindowConfig):
        """Options of R-CNN on regions; those of the fine-tuning are the paper's on VOC."""

        strategy: Strategy = "full+fg"
        "what the regressors see: the window of a region's box, the region alone, or both"
        layer: Layer = "fc6"
        "whose features they see"
        regions: int = 150
        "the most regions per image, the best ones"
        search: Mode = "fast"
        "of Selective Search, which finds the regions"
        svr_cost: float = 1e-3
        "C of the regressors: how much errors weigh against their size"
        svr_margin: float = 0.05
        "error of the IoU that costs nothing"
        region_threshold: float = 0.25
        "IoU that a region has to be expected to have with its best class"
        region_overlap: float = 0.1
        "share of a region that stronger ones may cover"
        pasted: int = 10
        "the most regions pasted per image"
        proposals: str = "fast"
        "of the fine-tuning: fast, quality or single (Selective Search), or a folder with one ID.npz per image"
        max_proposals: int = 2000
        "of the fine-tuning: the most proposals per image"
        crop: int = 227
        "side of the warped windows in pixels: 227 caffenet, 224 vgg16 and alexnet_tv"
        backbone: str = "caffenet"
        "caffenet, vgg16, alexnet_tv, or a backbone of any other method"
        steps: int = 70_000
        batch_size: int = 128
        "windows per optimiser step, over all devices together"
        schedule: Literal["poly", "step", "constant"] = "step"
        weight_decay: float = 5e-4

        def __post_init__(self) -> None:
            """Refuse numbers that nothing can be fitted with.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("regions", "pasted", "max_proposals"):
                require_at_least(name, getattr(self, name), 1)
            for name in ("svr_margin", "region_threshold", "region_overlap"):
                require_share(name, getattr(self, name))
            if self.svr_cost <= 0:
                raise UserError(f"--svr-cost {self.svr_cost}: must be above 0")

    config: Config
    network: RegionNetwork

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Those of the backbone's weights."""
        return pixel_statistics(self.config.backbone) or super().pixel_statistics

    # ------------------------------------------------------------ fine-tuning

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The classifier of windows, with room for the regressors.

        Raises:
            UserError: the data set has no background, to which pixels of no region belong.
        """
        if self.classes.background is None:
            raise UserError("rcnn_regions pastes objects on a background, which this data set has not; take another")
        body = window_body(self.config, pretrained=pretrained)
        return RegionNetwork(body, len(self.classes.objects), self.config.layer, self.config.strategy)

    @property
    def fine_tuning(self) -> FineTuning:
        """What draws the windows."""
        return FineTuning(self.config, self.classes, self.propose)

    def propose(self, sample: Sample) -> Tensor:
        """The boxes of the fine-tuning, [P, 4]."""
        return ProposalSource(self.config.proposals)(sample)[: self.config.max_proposals]

    def streams(self) -> dict[str, Stream]:
        """Windows that show an object, and windows that show none."""
        return self.fine_tuning.streams()

    def losses(self, foreground: Batch, background: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the windows."""
        return {"windows": self.fine_tuning.loss(self.network, self.normalize, foreground, background)}

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """Twice as much for biases."""
        return super().rate_multiplier(name, parameter) * (2.0 if name.endswith("bias") else 1.0)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay acts on everything but biases."""
        return not name.endswith("bias")

    # ------------------------------------------------------------- regressors

    @torch.no_grad()
    def complete(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Fit the regressors on regions of the training images; files of a cut call are used."""
        self.eval()
        parts = []
        for number in range(len(samples)):
            file = scratch / f"{number}.npz"
            if not file.exists():
                self._save_regions(samples[number], file)
            with np.load(file, allow_pickle=False) as known:
                parts.append((known["features"], known["overlaps"]))
        features, overlaps = map(np.concatenate, zip(*parts, strict=True))
        norms = np.linalg.norm(features.astype(np.float32), axis=1)
        self.network.scale.fill_(NORM / max(float(norms.mean()), 1e-12) if len(norms) else 1.0)
        scaled = features.astype(np.float32) * float(self.network.scale)
        for column in range(len(self.classes.objects)):
            # A class that no region overlaps has quality 0 everywhere, which the regression would find as well.
            if overlaps[:, column].any():
                machine = fit_svr(scaled, overlaps[:, column], self.config.svr_cost, self.config.svr_margin)
                self.network.svr_weight[:, column] = torch.from_numpy(machine.weight)
                self.network.svr_bias[column] = machine.bias

    def _save_regions(self, sample: Sample, file: Path) -> None:
        """Features [R, D] in half precision and overlaps [R, K] of an image's regions."""
        assert sample.mask is not None
        truth = sample.mask.as_subclass(Tensor)
        objects = torch.tensor(self.classes.objects)
        shown = truth == objects[torch.isin(objects, truth.unique())][:, None, None]
        masks = torch.cat([shown, self.regions(sample.image)])
        partial = file.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.savez(
                stream,
                features=self.region_features(sample.image, masks).half().cpu().numpy(),
                overlaps=region_overlaps(masks, truth, objects, IGNORE_INDEX).numpy(),
            )
        partial.replace(file)

    def regions(self, image: Tensor) -> Tensor:
        """The best regions of an image [3, H, W] uint8: [R, H, W] bool, on the CPU, none of them empty."""
        pixels = np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).cpu().numpy())
        found = selective_search_regions(pixels, self.config.search)
        masks = torch.from_numpy(found.masks(range(min(len(found), self.config.regions))))
        return masks[masks.flatten(1).any(dim=1)]

    def region_features(self, image: Tensor, masks: Tensor) -> Tensor:
        """The features [R, D] of regions [R, H, W] of an image [3, H, W] uint8."""
        config = self.config
        pixels = self.normalize(image.as_subclass(Tensor).to(self.device)[None])[0]
        window = (config.crop, config.context, config.warp)
        return self.network.region_features(
            pixels, masks.to(self.device), boxes_of_instances(masks).to(self.device), *window
        )

    # ------------------------------------------------------------- prediction

    def predict(self, image: Tensor) -> Tensor:
        """As of every segmenter; the scores are expected IoUs."""
        return self.inference.scores(self._pasted, image, image.float())

    def _pasted(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float, 0..255 -> scores [B, C, H, W]."""
        return torch.stack([self._scores(each.round().clamp(0, 255).to(torch.uint8)) for each in images])

    def _scores(self, image: Tensor) -> Tensor:
        config, classes = self.config, self.classes
        masks = self.regions(image)
        qualities = self.network.qualities(self.region_features(image, masks)).cpu()
        owner, strength = paste_regions(masks, qualities, config.region_threshold, config.pasted, config.region_overlap)
        scores = torch.zeros(len(classes), *image.shape[1:])
        scores[classes.background] = config.region_threshold
        numbers = torch.tensor(classes.objects)[owner.clamp_min(0)]
        # Where no region lies, nothing is added to the first class.
        return scores.scatter_add(0, numbers[None], strength[None]).to(self.device)
