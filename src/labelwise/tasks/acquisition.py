"""What methods that choose which pixels are to be labelled share: their options, and views of images with clicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torchvision import tv_tensors

from labelwise.datasets.derive import with_sparse_mask
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.models.acquisition import SHARE, Choice, Strategy
from labelwise.samples import Sample, Views


@dataclass(frozen=True, kw_only=True)
class AcquisitionConfig:
    """Options of choosing pixels, beside those of the training; the defaults are the paper's."""

    strategy: Strategy = "margin"
    "by what pixels are chosen: margin of the two likeliest classes, entropy, least confidence, or at random"
    rounds: int = 1
    "trainings, each with more labels than the one before; the labels per image are divided among them"
    share: float = SHARE
    "of an image's pixels, the candidates from which are chosen"
    choice: Choice = "share_then_random"
    "at random from the share of the least sure, the least sure of all, or the least sure of a random share"
    votes: int = 0
    "passes with random dropout whose scores are averaged (query by committee; 20 in the paper); 0 = one pass without"
    error_rate: float = 0.0
    "of the labels that are taken from the data set, the share that is replaced by another class"

    def __post_init__(self) -> None:
        """Refuse numbers by which nothing can be chosen.

        Raises:
            UserError: names the option.
        """
        # A mixin: the configuration of the training, if there is one behind it, checks its own.
        getattr(super(), "__post_init__", lambda: None)()
        require_at_least("rounds", self.rounds, 1)
        require_at_least("votes", self.votes, 0)
        require_share("error_rate", self.error_rate)
        if not 0 < self.share <= 1:
            raise UserError(f"--share {self.share}: must be above 0 and at most 1")
        if self.votes and self.strategy == "random":
            raise UserError(f"--votes {self.votes}: random pixels need no votes; leave it out")

    @property
    def candidate_share(self) -> float:
        """The share of an image's pixels that `select_pixels` may choose from: all of them at random."""
        return 1.0 if self.strategy == "random" else self.share


class ClickView:
    """One view of an image with clicks: moved and scaled, then its colors changed.

    Its mask knows the clicks alone and is 255 elsewhere; an image that comes with a mask keeps it. Unless `exact`, the
    clicks are scaled as a mask is, each pixel as its nearest one: a click may vanish in a smaller image, and is a small
    block in a larger one.
    """

    def __init__(
        self,
        geometric: Callable[[Sample], Views],
        photometric: Callable[[tv_tensors.Image], tv_tensors.Image] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        """Remember the transforms.

        Args:
            geometric: a view of one sample, such as `WeakView`.
            photometric: then changes the image alone; None leaves it.
            exact: each click that stays in the image remains one pixel, at whatever scale.
        """
        self.geometric, self.photometric, self.exact = geometric, photometric, exact

    def __call__(self, sample: Sample) -> Views:
        """Transform the image and its clicks."""
        view = self.geometric(sample if self.exact else _with_mask(sample))
        moved = _with_mask(view.sample)
        if self.photometric is not None:
            moved = replace(moved, image=self.photometric(moved.image))
        return replace(view, sample=moved)


def _with_mask(sample: Sample) -> Sample:
    """The sample with its clicks as a mask, if it has no mask."""
    if sample.mask is not None:
        return sample
    return replace(with_sparse_mask(sample), points=None, point_labels=None)
