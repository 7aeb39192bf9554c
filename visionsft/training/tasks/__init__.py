"""Tasks: LightningModules, one for each kind of task."""

from visionsft.training.tasks.segmentation import SegmentationModule

__all__ = ["SegmentationModule"]
