"""FCN: an image classifier read as a fully convolutional network, with skips from its finer features.

Idea. The fully connected layers of a classifier are convolutions over the whole of their input; read so, the network
takes images of any size and gives a coarse map of features. A 1x1 convolution scores the classes there (stride 32,
FCN-32s) and the map is enlarged linearly. FCN-16s adds scores of the features at stride 16, FCN-8s also those at
stride 8. The network learns from whole images, pixel by pixel. Every scoring layer starts at zero, so that FCN-16s,
which starts from a trained FCN-32s, begins with the same prediction, and FCN-8s with that of FCN-16s.

Citation. Jonathan Long, Evan Shelhamer, Trevor Darrell: Fully Convolutional Networks for Semantic Segmentation.
CVPR 2015; Evan Shelhamer, Jonathan Long, Trevor Darrell: the same title, TPAMI 39(4), 2017. The defaults are the
"heavy" recipe of the later one.

Needs: masks. Gives: masks.

Published (736 images of VOC 2011 val that are not in the training set of SBD, mean IU): FCN-32s / 16s / 8s
63.6 / 65.0 / 65.5 with the heavy recipe, 65.4 for 8s all at once; 59.4 / 62.4 / 62.7 in the CVPR paper.

The recipes are presets: `paper` (one image in a step, loss summed over its pixels, momentum 0.99, each finer network
from the one before with a hundredth of the learning rate), `at_once` (the finest network directly, with the finer
features multiplied by 0.01 and 0.0001) and `accumulate` (CVPR: mean loss, gradients of 20 images, momentum 0.9; images
of different sizes need `--accumulate 20`). A loss summed over pixels wants a learning rate smaller by their number: at
1e-10 the mean loss learns nothing, and with a sum the usual rates explode.

Departures: the weights of VGG-16 are torchvision's, with their RGB input normalised to unit deviation, not Caffe's
with BGR up to 255, since those are not offered for download; a GoogLeNet of the paper was never released, and is built
as the classifier's paper has it (`googlenet`), or is torchvision's (`googlenet_tv`). Fixed transposed convolutions are
computed as the linear interpolation that they are. Without `pad100` maps keep their place in the image by the same
coordinates, and are enlarged without fading to zero at the border. The backbones of other methods, which have no fc6
and fc7, are scored directly at strides 32, 16 and 8, with `pad100` or without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torchvision.transforms import v2

from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published, Stage, Stream
from labelwise.models.fcn import FCN as Network
from labelwise.models.fcn import transplant
from labelwise.models.fcn_networks import create_trunk, pixel_statistics
from labelwise.samples import IGNORE_INDEX, Batch, Kind
from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod

COARSEST = 32
COARSER = "coarser"
_JOURNAL, _CONFERENCE = "TPAMI 2017", "CVPR 2015"


def summed_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum over pixels of - log softmax(logits) of the true class (the "heavy" learning of the TPAMI paper).

    Args:
        logits: [B, K, H, W] float.
        mask: [B, H, W] class numbers, uint8 or int64; 255 does not count.

    Returns:
        Scalar float32.
    """
    return functional.cross_entropy(logits.float(), mask.long(), ignore_index=IGNORE_INDEX, reduction="none").sum()


class FCN(SegmentationMethod):
    """A classifier as a fully convolutional network, at stride 32, 16 or 8."""

    card = Card(
        name="fcn",
        title="Fully convolutional network",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015; "
        "Shelhamer, Long, Darrell, TPAMI 2017",
        year=2015,
        idea="A classifier's fully connected layers are convolutions: score its features at strides 32, 16 and 8, sum "
        "the maps and enlarge them.",
        published=(
            *(
                Published(f"VOC 2011 val without SBD train, FCN-{form}, heavy", "mIoU", value, _JOURNAL)
                for form, value in (("32s", 63.6), ("16s", 65.0), ("8s", 65.5), ("8s at once", 65.4))
            ),
            *(
                Published(f"VOC 2011 val without SBD train, FCN-{form}", "mIoU", value, _CONFERENCE)
                for form, value in (("32s", 59.4), ("16s", 62.4), ("8s", 62.7))
            ),
            Published("VOC 2012 test, FCN-8s, heavy", "mIoU", 67.2, _JOURNAL),
            Published("VOC 2012 test, FCN-8s", "mIoU", 62.2, _CONFERENCE),
        ),
        claim=Claim(
            "Skips from finer features: FCN-8s beats FCN-32s with the same data and steps.",
            baseline="fcn",
            labels="masks:all",
            paper_labels="masks:all",
            margin=5.0,
            scenes={"scenes": "objects", "size": 96, "train": 480, "val": 120},
            baseline_settings={"stride": COARSEST},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(SegmentationConfig):
        """Options of FCN; the defaults are those of the heavy recipe on VOC, in stages."""

        stride: Literal[32, 16, 8] = 8
        "of the finest features that are scored"
        at_once: bool = False
        "train the finest network directly, not from a run of the next coarser one"
        skip_scales: tuple[float, float] = (0.01, 0.0001)
        "at once: factors of the features at strides 16 and 8 before they are scored; 1 1 for normalised features"
        start: str = COARSER
        "in stages: coarser = a run of the next coarser network, made first; or the folder of such a run"
        stage_factor: float = 0.01
        "in stages: the learning rate of each finer network as a multiple of that of the coarser one"
        pad100: bool = True
        "pad the image by 100 pixels and crop by fixed offsets, as the paper's networks do; false = keep sizes"
        learn_upsampling: bool = False
        "learn the transposed convolutions between the skips; the last one stays bilinear"
        reduction: Literal["sum", "mean"] = "sum"
        "of the loss over pixels; sum wants learning rates about 1e-5 of those of mean"
        momentum: float = 0.99
        "of sgd; for one image in a step, about the 20th root of that for 20"
        backbone: str = "vgg16"
        "vgg16, caffenet, alexnet_tv, googlenet, googlenet_tv, vgg_tiny, or a backbone with features to stride 32"
        backbone_weights: str = "imagenet"
        "imagenet, none, or a file: torchvision's, timm's, or for caffenet and googlenet Caffe's layer names"
        crop: int = 0
        "side of square training crops in pixels, scaled and mirrored; 0 = whole images, not augmented"
        steps: int = 100_000
        batch_size: int = 1
        schedule: Literal["poly", "step", "constant"] = "constant"
        learning_rate: float = 1e-10
        "of the coarsest network, or of the one that is trained at once; biases have twice as much"
        head_multiplier: float = 1.0
        weight_decay: float = 5e-4
        decay_norms: bool = False
        "weight decay on normalisation weights; never on biases"

        def __post_init__(self) -> None:
            """Refuse numbers that no FCN can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("stage_factor", "momentum"):
                require_at_least(name, getattr(self, name), 0)
            if self.momentum >= 1:
                raise UserError(f"--momentum {self.momentum}: must be below 1")
            if self.learn_upsampling and (self.stride == COARSEST or not self.pad100):
                raise UserError("--learn-upsampling: needs skips and --pad100; --stride 16 or 8")
            if self.ohem_pixels and self.reduction == "sum":
                raise UserError(f"--ohem-pixels {self.ohem_pixels}: is a mean over pixels; --reduction mean")

        @property
        def stages_before(self) -> int:
            """How many coarser networks are trained before this one."""
            return 0 if self.at_once else {32: 0, 16: 1, 8: 2}[self.stride]

    config: Config

    @classmethod
    def stages(cls, config: FCN.Config) -> tuple[Stage, ...]:
        """The run of the next coarser network, which has one before it in turn."""
        if not config.stages_before:
            return ()
        stride = 2 * config.stride
        learned = config.learn_upsampling and stride < COARSEST
        return (Stage("start", COARSER, "fcn", {"stride": stride, "learn_upsampling": learned}),)

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Those of the backbone's weights."""
        return pixel_statistics(self.config.backbone) or super().pixel_statistics

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """FCN on the configured backbone; all scores are zero.

        Args:
            pretrained: load the configured backbone weights, unless a run is named to start from.
        """
        config = self.config
        starts_from_run = config.stages_before and config.start != COARSER
        weights = config.backbone_weights if pretrained and not starts_from_run else None
        trunk = create_trunk(config.backbone, config.pad100, weights)
        scales = config.skip_scales if config.at_once else (1.0, 1.0)
        try:
            return Network(
                trunk,
                len(self.classes),
                config.stride,
                skip_scales=scales,
                learn_upsampling=config.learn_upsampling,
            )
        except ValueError as error:
            mend = "--stride 32" if config.stride not in trunk.strides else "--no-learn-upsampling"
            raise UserError(f"backbone '{config.backbone}': {error}; {mend}") from error

    def build_training(self) -> None:
        """Take over the weights of the coarser network."""
        if not self.config.stages_before:
            return
        coarser, stride = self.earlier["start"], 2 * self.config.stride
        mend = f"name an FCN-{stride}s of the same backbone that was trained in stages, or --start {COARSER}"
        if not isinstance(coarser, FCN) or not self._continues(coarser.config):
            raise UserError(f"--start {self.config.start}: is no coarser form of this network; {mend}")
        try:
            transplant(coarser.network, self.network)
        except ValueError as error:
            raise UserError(f"--start {self.config.start}: {error}; {mend}") from error

    def _continues(self, coarser: FCN.Config) -> bool:
        ours = self.config
        same = (coarser.stride, coarser.backbone, coarser.pad100) == (2 * ours.stride, ours.backbone, ours.pad100)
        # Its skips must not expect scaled features.
        return same and (coarser.stride == COARSEST or not coarser.at_once)

    def streams(self) -> dict[str, Stream]:
        """One stream of labelled images."""
        return {"labeled": Stream("labeled", self.weak_view())}

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Cross-entropy over the labelled pixels."""
        return {"supervised": self.loss_on_labels(labeled)}

    def geometric(self) -> v2.Transform:
        """Nothing for whole images: mirroring and shifts brought the paper no gain."""
        return super().geometric() if self.config.crop else v2.Identity()

    def supervised_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """The cross-entropy, summed or averaged over the pixels of the batch."""
        if self.config.reduction == "mean":
            return super().supervised_loss(logits, labeled)
        assert labeled.mask is not None
        return summed_cross_entropy(logits, labeled.mask)

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """Twice as much for biases; a hundredth for each stage before this one."""
        factor = self.config.stage_factor**self.config.stages_before * (2.0 if is_bias(name) else 1.0)
        return factor * super().rate_multiplier(name, parameter)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Not for biases."""
        return not is_bias(name) and super().decays(name, parameter)

    def make_optimizer(self, groups: list[dict[str, object]]) -> Optimizer:
        """SGD with the configured momentum, or AdamW."""
        if self.config.optimizer == "sgd":
            return SGD(groups, momentum=self.config.momentum)
        return super().make_optimizer(groups)


def is_bias(name: str) -> bool:
    """Whether a parameter of this dotted name is a bias."""
    return name.endswith(".bias")
