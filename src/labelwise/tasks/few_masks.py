"""What the methods that learn from few masks and many bare images share."""

from __future__ import annotations

from dataclasses import dataclass

from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod


@dataclass(frozen=True, kw_only=True)
class FewMasksConfig(SegmentationConfig):
    """Options of every semi-supervised segmenter."""

    supervised_share: float = 0.0
    "share of the steps, at the start, that learns from labels alone; 0 in the papers, 0.3 for random backbones"


class FewMasksMethod(SegmentationMethod):
    """A segmenter that learns from a labelled and an unlabelled stream."""

    config: FewMasksConfig
    Config = FewMasksConfig

    @property
    def warming_up(self) -> bool:
        """Whether this step still learns from labels alone."""
        return self.progress < self.config.supervised_share
