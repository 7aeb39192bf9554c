"""Tasks: LightningModules, one for each kind of task."""

from visionsft.training.tasks.classification import ClassificationModule, MultiLabelModule
from visionsft.training.tasks.detection import DetectionModule
from visionsft.training.tasks.segmentation import SegmentationModule
from visionsft.training.tasks.task import Optimization, Task

__all__ = [
    "ClassificationModule",
    "DetectionModule",
    "MultiLabelModule",
    "Optimization",
    "SegmentationModule",
    "Task",
]
