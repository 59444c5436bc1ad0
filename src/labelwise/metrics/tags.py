"""Scores of image classification: multi-label mean average precision, and top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from labelwise.errors import UserError

IGNORE_INDEX = 255


@dataclass
class TagScores:
    """What `ClassificationScores` computes; percentages.

    Attributes:
        map: the mean of `ap` over the classes that are not None.
        ap: class name -> average precision; None for a class that no image shows.
        top1: the share of images whose highest score is of their one class; None where not every image has one.
        top5: the share of images whose class is among the five highest; None as `top1`, and below six classes.
        images: how many images were scored.
    """

    map: float
    ap: dict[str, float | None]
    top1: float | None
    top5: float | None
    images: int


class ClassificationScores(Metric):
    """Keeps the scores of all images; the average precision of a class ranks the whole set."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor]
    tags: list[Tensor]

    def __init__(self, class_names: Sequence[str]) -> None:
        """Start empty.

        Args:
            class_names: one name per column of scores and tags.
        """
        super().__init__()
        self.class_names = tuple(class_names)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("tags", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, tags: Tensor) -> None:
        """Add a batch of images.

        Args:
            scores: [B, K] float, higher is more probable; only their order within a class counts.
            tags: [B, K] uint8: 1 present, 0 absent, 255 ignored for this class.
        """
        self.scores.append(scores.detach().float())
        self.tags.append(tags)

    def compute(self) -> TagScores:
        """The scores of everything added so far, over all processes.

        Raises:
            UserError: no image shows any class.
        """
        scores, tags = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.tags).cpu()
        ap = {
            name: average_precision(scores[:, number], tags[:, number]) for number, name in enumerate(self.class_names)
        }
        present = [value for value in ap.values() if value is not None]
        if not present:
            raise UserError("nothing to score: no evaluated image shows any class; give a split with tags")
        top1, top5 = (_top_accuracy(scores, tags, count) for count in (1, 5))
        return TagScores(sum(present) / len(present), ap, top1, top5, len(scores))


def average_precision(scores: Tensor, tags: Tensor) -> float | None:
    """The area under the step-wise precision-recall curve, in percent: sum over thresholds (R_n - R_n-1) P_n.

    It is what scikit-learn computes and what papers on image tags report. Images of one score enter together, so that
    their order makes no difference. VOC's own detection protocol takes the envelope of the curve instead, which is
    never lower.

    Args:
        scores: [N] float.
        tags: [N] uint8: 1 present, 0 absent, 255 ignored.

    Returns:
        0 to 100, or None where no image shows the class.
    """
    known = tags != IGNORE_INDEX
    scores, present = scores[known], tags[known] == 1
    count = int(present.sum())
    if not count:
        return None
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], present[order].cumsum(0, dtype=torch.float64)
    # The last image of each score.
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)]).nonzero().flatten()
    hits, gained = hits[ends], hits[ends].diff(prepend=hits.new_zeros(1))
    return 100 * float((gained * hits / (ends + 1)).sum()) / count


def _top_accuracy(scores: Tensor, tags: Tensor, count: int) -> float | None:
    one_class = bool(((tags == 1).sum(1) == 1).all())
    if not one_class or count >= scores.shape[1]:
        return None
    best = scores.topk(count, dim=1).indices
    return 100 * float((tags.gather(1, best) == 1).any(1).double().mean())
