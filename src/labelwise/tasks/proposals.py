"""Where objects may be, for the detectors that are told: Selective Search with a cache on the disk, or given files."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torchvision import tv_tensors

from labelwise.errors import require_at_least
from labelwise.samples import Sample, Views
from labelwise.tasks.detection import DetectionConfig, DetectionMethod
from labelwise.tasks.proposal_sources import ProposalSource


@dataclass(frozen=True, kw_only=True)
class ProposalConfig(DetectionConfig):
    """Options of every detector that is given proposals."""

    proposals: str = "fast"
    "fast, quality or single: Selective Search in that mode; or a folder with one ID.npz of boxes and size per image"
    max_proposals: int = 2000
    "the most proposals per image, the best ones"

    def __post_init__(self) -> None:
        """Refuse numbers that no detector can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("max_proposals", self.max_proposals, 1)


class ProposalMethod(DetectionMethod):
    """A detector that is given proposals, in training and in prediction."""

    config: ProposalConfig
    Config = ProposalConfig

    def propose(self, sample: Sample) -> Tensor:
        """The proposals of an image: [P, 4] float32 in its pixels, best first."""
        return ProposalSource(self.config.proposals)(sample)[: self.config.max_proposals].to(self.device)

    def with_proposals(self, sample: Sample) -> Sample:
        """The sample with its proposals, which transforms then move along with the image."""
        boxes = tv_tensors.BoundingBoxes(
            self.propose(sample).cpu(),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(sample.image.shape[-2], sample.image.shape[-1]),
        )
        return replace(sample, proposals=boxes)

    def labeled_view(self, sample: Sample) -> Views:
        """As of every detector, with the image's proposals."""
        return super().labeled_view(self.with_proposals(sample))
