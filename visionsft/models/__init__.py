"""Models: a backbone with a task head, and the losses that train it; plain PyTorch."""

from __future__ import annotations

from visionsft.models.classifier import ClassificationModel, create_classifier
from visionsft.models.detections import Detections
from visionsft.models.detector import DETECTION_HEADS, DetectionModel, create_detector
from visionsft.models.heads import HEADS, IMAGE_HEADS
from visionsft.models.losses import build_loss, class_weights
from visionsft.models.model import SegmentationModel, create_model
from visionsft.models.pyramid import SimpleFeaturePyramid

__all__ = [
    "DETECTION_HEADS",
    "HEADS",
    "IMAGE_HEADS",
    "ClassificationModel",
    "DetectionModel",
    "Detections",
    "SegmentationModel",
    "SimpleFeaturePyramid",
    "build_loss",
    "class_weights",
    "create_classifier",
    "create_detector",
    "create_model",
]
