"""ADELE: adaptive early-learning correction for segmentation from noisy annotations.

Idea. A network first learns what wrong masks have in common, which is the truth, and later their errors by heart; when
it turns from one to the other differs from class to class. The IoU between predictions and the given training labels
is followed for each class, a saturating curve is fitted to it, and once its slope has lost 90 % of what it had after
the first epoch the class counts as memorised. From then on the labels of such classes are replaced, after every epoch,
by confident predictions over several scales, starting from the given labels each time. What makes these predictions
trustworthy is a loss that makes three scales of an image agree.

Citation. Sheng Liu, Kangning Liu, Weicheng Zhu, Yiqiu Shen, Carlos Fernandez-Granda: Adaptive Early-Learning
Correction for Segmentation from Noisy Annotations. CVPR 2022.

Needs: masks (of which some are wrong). Gives: masks.

Published (VOC 2012, trained on pseudo-masks of trainaug): with SEAM's 69.3 val and 68.8 test, without ADELE 64.5 and
65.7. From memory, with AffinityNet's 64.8 / 65.5 (without 61.7 / 63.7), ICD's 68.6 / 68.9, NSROM's 71.6 / 72.0.

Paper and released code differ; the default is the code's form: the gate of the consistency loss opens for whole images
(`gate="pixel"` is the paper's), the curve is concave from the start, labels are corrected with other scales than those
of the training, and ignored pixels stay in the mean of the cross-entropy. The code's defaults for CRF, scales and
re-initialisation are not those of the command that it recommends; the latter are the defaults here. The factor of about
a third by which the scales' weights multiply the logits acts as a temperature of 3, in the loss and in the correction.

On CT scans (SegTHOR; the preset `segthor`) the network is a U-Net, the loss is divided by the number of scales, whose
weights are a third each, a curve has one point per epoch and is fitted after its flat start, and corrections are kept:
each class's every tenth epoch, at one scale, where both the old class and the new one are active or background. The
predictions are made after the epoch and with running statistics instead of during the epoch's steps, under the
temperature of the cross-entropy; slices are mirrored, and gray ones are read as color.

Departures: the network is this package's DeepLabv3+ on any backbone, WideResNet-38 in the `paper` preset, instead of
DeepLab v1; views have no change of hue, saturation and value. `warmup_epochs` (0 in the paper) starts with plain
training, and `temperature` 1 leaves the logits as they are: a small network with random weights needs both. The
corrected labels are left in the run's folder as the data set `labels`, the curves as `learning_curves.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from labelwise.errors import UserError, require_at_least, require_share
from labelwise.losses.pixel import pixel_cross_entropy
from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.models.dense_crf import CRFParameters, dense_crf, unary_from_logits
from labelwise.models.label_correction import correct_labels, correct_scan_labels, may_correct
from labelwise.models.memorization import MemorizationMonitor, fit_saturation, update_epoch, update_epoch_after_start
from labelwise.models.unet import UNet
from labelwise.samples import IGNORE_INDEX, Batch, Kind, Sample
from labelwise.tasks.deeplab import DeepLabConfig, DeepLabMethod
from labelwise.tasks.few_masks import in_evaluation
from labelwise.tasks.label_store import LabelStore, StoredMaskView, UsedVersions, write_label_folder
from labelwise.tasks.segmentation import SegmentationConfig

SCALES = (1.0, 0.7, 1.5)
CORRECTION_SCALES = (0.75, 1.0, 1.5)
CRF = CRFParameters(
    appearance_weight=10,
    appearance_xy=32,
    appearance_rgb=13,
    smoothness_weight=3,
    smoothness_xy=3,
    iterations=1,
    normalization="symmetric",
)
LEARNING_CURVES = "learning_curves.json"
_CLAMP = 1e-3


class MultiScaleLoss(NamedTuple):
    """The two terms of a step and what the scales agree on."""

    cross_entropy: Tensor
    consistency: Tensor
    mean: Tensor
    "[B, K, H, W] probabilities q"


def multiscale_loss(
    logits: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor,
    confidence: float = 0.8,
    gate: Literal["image", "pixel"] = "image",
    temperature: float = 3.0,
) -> MultiScaleLoss:
    """Cross-entropy of every scale, and the divergence of the scales from their mean (equations 7 and 8).

    With a = softmax(weights), p_i = softmax(logits_i) and q = clamp(sum_i a_i p_i, 0.001, 0.999):
    the cross-entropy is the sum over i of the mean over all pixels, ignored ones included as 0, of CE(a_i logits_i, y);
    the consistency is the mean over all pixels of G sum_i KL(p_i || q), where G is 1 if q exceeds the confidence: in
    some labeled pixel of the image, or in the pixel itself.

    Args:
        logits: of each scale, [B, K, H, W].
        weights: [scales], w in the paper.
        mask: [B, H, W] uint8, 255 = ignore.
        confidence: rho in the paper.
        gate: what opens at once.
        temperature: 3 is as published; other values multiply the logits of the cross-entropy by 3 / temperature.
    """
    shares = weights.softmax(0)
    sharpened = len(logits) / temperature * shares
    cross_entropy = torch.stack(
        [
            pixel_cross_entropy(share * each, mask, IGNORE_INDEX).mean()
            for share, each in zip(sharpened, logits, strict=True)
        ]
    ).sum()
    logarithms = [each.float().log_softmax(1) for each in logits]
    mean = torch.stack([share * each.exp() for share, each in zip(shares, logarithms, strict=True)]).sum(0)
    mean = mean.clamp(_CLAMP, 1 - _CLAMP)
    divergence = torch.stack([(each.exp() * (each - mean.log())).sum(1) for each in logarithms]).sum(0)
    sure = mean.detach().amax(1) >= confidence
    if gate == "image":
        sure = (sure & (mask != IGNORE_INDEX)).flatten(1).any(1)[:, None, None]
    return MultiScaleLoss(cross_entropy, (sure * divergence).mean(), mean)


class ADELE(DeepLabMethod):
    """Follow each class's learning curve and correct the labels of those that are being memorised."""

    card = Card(
        name="adele",
        title="Adaptive early-learning correction",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS}), dense=True),
        gives=frozenset({Kind.MASKS}),
        paper="Liu, Liu, Zhu, Shen, Fernandez-Granda: Adaptive Early-Learning Correction for Segmentation from Noisy "
        "Annotations, CVPR 2022",
        year=2022,
        idea="When a class's learning curve flattens, the network begins to memorise wrong labels: from then on "
        "confident predictions over several scales replace them.",
        published=(
            Published("VOC 2012 val, pseudo-masks of SEAM, WideResNet-38", "mIoU", 69.3, "paper"),
            Published("VOC 2012 test, pseudo-masks of SEAM, WideResNet-38", "mIoU", 68.8, "paper"),
            Published("VOC 2012 val, pseudo-masks of AffinityNet", "mIoU", 64.8, "paper, as remembered"),
            Published("VOC 2012 val, pseudo-masks of ICD", "mIoU", 68.6, "paper, as remembered"),
            Published("VOC 2012 val, pseudo-masks of NSROM", "mIoU", 71.6, "paper, as remembered"),
        ),
        claim=Claim(
            "On masks that are drawn too wide or too narrow, ADELE beats plain training on the same masks.",
            baseline="supervised",
            labels="masks:all",
            paper_labels="masks:all",
            margin=2.0,
            scenes={"scenes": "heads", "size": 40, "train": 120, "val": 120, "noise": "uneven", "noise_amount": 1.0},
            baseline_options=("crop", "steps", "batch_size", "optimizer", "learning_rate"),
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(DeepLabConfig):
        """Options of ADELE; the defaults are those of the command that the released code recommends for VOC."""

        network: Literal["deeplab", "unet"] = "deeplab"
        "DeepLabv3+ on the backbone, or the U-Net of CT scans (SegTHOR), of random weights and without a backbone"
        momentum: float = 0.9
        "of sgd; 0.99 on CT scans (SegTHOR)"
        bias_multiplier: float = 1.0
        "learning rate of biases, as a multiple of their layer's; 2 in the paper"
        consistency_weight: float = 1.0
        "lambda: weight of the agreement of the three scales"
        confidence: float = 0.8
        "rho: the mean prediction has to reach it for the agreement to count"
        gate: Literal["image", "pixel"] = "image"
        "whether agreement counts for whole images with a sure pixel (code) or for sure pixels (paper)"
        scale_weights: Literal["learned", "constant"] = "learned"
        "weights of the three scales: learned, or a third each (SegTHOR)"
        temperature: float = 3.0
        "of the logits in the cross-entropy and in the correction; 1 for small networks with random weights"
        average_scales: bool = False
        "divide the loss by the number of scales, as on CT scans (SegTHOR)"
        warmup_epochs: int = 0
        "epochs of plain training at the start; wanted for networks with random weights"
        trigger: Literal["slope", "after_start"] = "slope"
        "memorisation is sought in the whole curve (VOC) or after its flat start, one point per epoch (SegTHOR)"
        curve_labels: Literal["given", "current"] = "given"
        "labels that the curves are measured against: as they were given (VOC), or as they are now (SegTHOR)"
        slope_ratio: float = 0.9
        "r: share of its first slope that a curve has lost when its class is being memorised; above 1 never"
        curve_every: int = 100
        "steps between the points of a learning curve, with the trigger slope"
        correction: Literal["voc", "segthor"] = "voc"
        "over several scales and to active classes; or at one scale, from active classes to active ones (SegTHOR)"
        correction_threshold: float = 0.8
        "tau: confidence above which a prediction replaces a label"
        background_threshold: float = 0.7
        "the same of the background, with the correction segthor"
        correct_every: int = 1
        "epochs from one correction of a class to its next; more than 1 only without reinitialize (SegTHOR: 10)"
        class_constraint: bool = True
        "images with objects get no class that their masks do not have"
        reinitialize: bool = True
        "each correction starts from the given labels instead of the last corrected ones"
        refine_from: int = 9
        "first epoch whose correction takes mirrored copies and the dense CRF as well; -1 = none"

        def __post_init__(self) -> None:
            """Refuse numbers that the method cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("confidence", "correction_threshold", "background_threshold", "momentum"):
                require_share(name, getattr(self, name))
            for name, least in (
                ("consistency_weight", 0),
                ("slope_ratio", 0),
                ("warmup_epochs", 0),
                ("curve_every", 1),
                ("correct_every", 1),
                ("bias_multiplier", 0),
                ("refine_from", -1),
            ):
                require_at_least(name, getattr(self, name), least)
            if self.temperature <= 0:
                raise UserError(f"--temperature {self.temperature}: must be above 0")
            if self.correct_every > 1 and self.reinitialize:
                raise UserError(f"--correct-every {self.correct_every}: needs labels that are kept; --no-reinitialize")
            if self.network == "unet" and self.backbone_weights != "none":
                raise UserError("--network unet: there are no pretrained weights of it; --backbone-weights none")

        def at_output_stride(self, output_stride: int) -> Self:
            """See `DeepLabConfig`; the U-Net has one output stride only."""
            if self.network == "unet":
                return SegmentationConfig.at_output_stride(self, output_stride)
            return super().at_output_stride(output_stride)

    config: Config
    samples: Sequence[Sample] = ()
    store: LabelStore

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """DeepLabv3+ on the configured backbone, or a U-Net of random weights."""
        if self.config.network == "unet":
            return UNet(len(self.classes))
        return super().build_network(pretrained=pretrained)

    def build_training(self) -> None:
        """The scales' weights, the learning curves, and which version of the labels is learned from."""
        self.scale_weights = nn.Parameter(torch.ones(len(SCALES)), self.config.scale_weights == "learned")
        self.monitor = MemorizationMonitor(len(self.classes))
        self.versions = UsedVersions()

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """The scales' weights learn at the backbone's rate, biases at a multiple of their layer's."""
        if name == "scale_weights":
            return 1.0
        of_bias = self.config.bias_multiplier if name.endswith("bias") else 1.0
        return of_bias * super().rate_multiplier(name, parameter)

    def make_optimizer(self, groups: list[dict[str, object]]) -> Optimizer:
        """SGD with the configured momentum, or AdamW."""
        if self.config.optimizer == "adamw":
            return super().make_optimizer(groups)
        return SGD(groups, momentum=self.config.momentum)

    def prepare(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Remember the images, to pass through them after an epoch, and where to keep their labels."""
        self.samples, self.store = samples, LabelStore(scratch / "labels")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the version of the labels in use."""
        self.versions.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the labels of the checkpoint."""
        self.versions.load(checkpoint)

    def streams(self) -> dict[str, Stream]:
        """Crops with the labels as they are now and as they were given; drawn just before a step."""
        return {"labeled": Stream("labeled", StoredMaskView(self.weak_view(), self.current_mask), live=True)}

    def current_mask(self, sample: Sample) -> Tensor:
        """The labels that are learned from now: [H, W] uint8; those that were given until a correction."""
        assert sample.mask is not None
        return self.store.read(self.versions.current, sample.id) if self.versions.current else sample.mask

    def epochs_done(self, steps: int) -> int:
        """Whole passes over the images after so many steps."""
        return steps * self.config.batch_size // max(1, len(self.samples))

    @property
    def warming_up(self) -> bool:
        """Whether this step is plain training."""
        return self.epochs_done(self.global_step) < self.config.warmup_epochs

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Cross-entropy with the current labels and agreement of three scales; follows the curves on the way."""
        assert labeled.mask is not None
        image = self.normalize(labeled.image)
        logits = [self.network(image)]
        followed = labeled.mask if self.config.curve_labels == "current" else torch.stack(labeled.targets["original"])
        self.monitor.update(logits[0].detach().argmax(1), followed)
        self.observe(corrected_classes=self.monitor.active.sum())
        if self.warming_up:
            # The weights of the scales take part with 0, since DDP asks for a gradient of every parameter.
            return {"supervised": self.supervised_loss(logits[0], labeled) + 0 * self.scale_weights.sum()}
        logits += [self._at_scale(image, scale) for scale in SCALES[1:]]
        config = self.config
        terms = multiscale_loss(
            logits, self.scale_weights, labeled.mask, config.confidence, config.gate, config.temperature
        )
        share = 1 / len(SCALES) if config.average_scales else 1.0
        consistency = share * config.consistency_weight * terms.consistency
        return {"supervised": share * terms.cross_entropy, "consistency": consistency}

    def _at_scale(self, image: Tensor, scale: float) -> Tensor:
        """Logits [B, K, H, W] of images [B, 3, H, W] seen at another scale."""
        size = image.shape[-2:]
        smaller = [max(1, int(side * scale)) for side in size]
        scaled = functional.interpolate(image, smaller, mode="bilinear", align_corners=True)
        return functional.interpolate(self.network(scaled), size, mode="bilinear", align_corners=True)

    def after_step(self) -> None:
        """Add to the curves, and at the end of an epoch find what is being memorised and correct its labels."""
        step = self.global_step + 1
        epochs = self.epochs_done(step)
        ends = epochs > self.epochs_done(step - 1)
        if ends if self.config.trigger == "after_start" else (step - 1) % self.config.curve_every == 0:
            counts = self.trainer.strategy.reduce(self.monitor.counts, reduce_op="sum")
            self.monitor.add_point(torch.as_tensor(counts))
        if ends and epochs > self.config.warmup_epochs:
            self._activate(epochs - 1)
            due = self.monitor.due(epochs - 1, self.config.correct_every)
            if bool(due.any()):
                self._correct(epochs, due)

    def _activate(self, epoch: int) -> None:
        for number in self.classes.objects:
            if not self.monitor.active[number] and self._memorizes(number, epoch):
                self.monitor.activate(number, epoch)

    def _memorizes(self, number: int, epoch: int) -> bool:
        config, curve = self.config, self.monitor.curve(number)
        if config.trigger == "after_start":
            horizon = max(1, self.epochs_done(self.total_steps) - 1)
            return epoch - 1 >= update_epoch_after_start(curve, config.slope_ratio, horizon)
        return epoch >= update_epoch(curve, self._points_per_epoch, config.slope_ratio)

    @property
    def _points_per_epoch(self) -> float:
        config = self.config
        steps = len(self.samples) / config.batch_size
        return 1.0 if config.trigger == "after_start" else steps / config.curve_every

    @torch.no_grad()
    def _correct(self, epochs: int, active: Tensor) -> None:
        """Write the labels that follow the epochs done so far, image by image.

        Args:
            epochs: their number, which becomes the labels' version.
            active: [K] bool, the object classes to correct.
        """
        if self.classes.background is not None:
            active[self.classes.background] = True
        with in_evaluation(self.network):
            for index in range(len(self.samples)):
                sample = self.samples[index]
                assert sample.mask is not None
                source = sample.mask if self.config.reinitialize else self.current_mask(sample)
                mask = source.as_subclass(Tensor).to(self.device)
                self.store.write(epochs, sample.id, self._corrected(mask, sample.image, epochs - 1, active))
        self.store.finish(epochs)
        self.versions.current = epochs
        self.store.prune(self.versions.needed)

    def _corrected(self, mask: Tensor, image: Tensor, epoch: int, active: Tensor) -> Tensor:
        """The labels of an image after an epoch: [H, W] uint8, [3, H, W] uint8, [K] bool -> [H, W] uint8."""
        config, background = self.config, self.classes.background
        rules: dict[str, Any] = {"background": background, "class_constraint": config.class_constraint}
        rules["threshold"] = config.correction_threshold
        if config.correction == "segthor":
            probability = self._probability(image, epoch, (1.0,))
            threshold = config.background_threshold
            return correct_scan_labels(mask, probability, active, background_threshold=threshold, **rules)
        if not may_correct(mask, active, background):
            return mask
        return correct_labels(mask, self._probability(image, epoch, CORRECTION_SCALES), active, **rules)

    def _probability(self, image: Tensor, epoch: int, scales: Sequence[float]) -> Tensor:
        """The class probabilities of every pixel, over some scales: [3, H, W] uint8 -> [K, H, W]."""
        pixels = image.as_subclass(Tensor).to(self.device)
        normalized = self.normalize(pixels[None])
        refined = 0 <= self.config.refine_from <= epoch
        copies = [normalized, normalized.flip(-1)] if refined else [normalized]
        logits = torch.stack([self._at_scale(copy, scale) for copy in copies for scale in scales])
        if refined:
            logits[len(scales) :] = logits[len(scales) :].flip(-1)
        mean = logits.float().mean((0, 1)) / self.config.temperature
        return dense_crf(pixels, unary_from_logits(mean), CRF) if refined else mean.softmax(0)

    def report(self, folder: Path) -> None:
        """Leave the labels as they were last corrected, as the data set `labels`, and the learning curves."""
        samples = (self.samples[index] for index in range(len(self.samples)))
        relabeled = (Sample(id=each.id, image=each.image, mask=self.current_mask(each)) for each in samples)
        write_label_folder(folder / "labels", self.classes, relabeled)
        curves = {self.classes.names[number]: self._curve(number) for number in self.classes.objects}
        (folder / LEARNING_CURVES).write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")

    def _curve(self, number: int) -> dict[str, Any]:
        """A class's learning curve over epochs, its fit and the epoch after which correction began."""
        iou = np.array(self.monitor.curve(number))
        time = np.linspace(0, len(iou) / self._points_per_epoch, len(iou))
        fit = fit_saturation(time, iou)
        since = int(self.monitor.since[number])
        return {
            "epoch": time.tolist(),
            "iou": iou.tolist(),
            "fit": None if fit is None else fit(time).tolist(),
            "corrected_after": since + 1 if since >= 0 else None,
        }
