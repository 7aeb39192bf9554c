"""Data modules: GeoTIFF scenes and camera frames as normalised, augmented, never leaking batches.

Names are imported when they are first used: `datamodules.batch` alone needs neither rasterio nor lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.augment import Augment
    from datamodules.batch import IGNORE, Batch, Item, Sample, Window
    from datamodules.camera import CameraFrameDataModule
    from datamodules.camera_labels import CameraClassificationDataModule
    from datamodules.camera_objects import CameraDetectionDataModule
    from datamodules.classes import Classes, ClassSpec
    from datamodules.classification import ClassificationDataModule
    from datamodules.datamodule import DataModule, SegmentationDataModule
    from datamodules.detection import DetectionDataModule
    from datamodules.errors import DataError
    from datamodules.geotiff import GeoTiffDataModule
    from datamodules.geotiff_labels import GeoTiffClassificationDataModule
    from datamodules.geotiff_objects import GeoTiffDetectionDataModule
    from datamodules.labelled import LabelledBatch, LabelledSample
    from datamodules.labels import VectorOptions
    from datamodules.leaks import Leak, find_leaks
    from datamodules.sampling import SampleKey
    from datamodules.splits import DriveSplit, FileSplit, FolderSplit, ListSplit, PlaceSplit, SceneSplit
    from datamodules.statistics import Normalisation, Statistics

__all__ = [
    "IGNORE",
    "Augment",
    "Batch",
    "CameraClassificationDataModule",
    "CameraDetectionDataModule",
    "CameraFrameDataModule",
    "ClassSpec",
    "Classes",
    "ClassificationDataModule",
    "DataError",
    "DataModule",
    "DetectionDataModule",
    "DriveSplit",
    "FileSplit",
    "FolderSplit",
    "GeoTiffClassificationDataModule",
    "GeoTiffDataModule",
    "GeoTiffDetectionDataModule",
    "Item",
    "LabelledBatch",
    "LabelledSample",
    "Leak",
    "ListSplit",
    "Normalisation",
    "PlaceSplit",
    "Sample",
    "SampleKey",
    "SceneSplit",
    "SegmentationDataModule",
    "Statistics",
    "VectorOptions",
    "Window",
    "find_leaks",
]

_MODULES = {
    "augment": ("Augment",),
    "batch": ("IGNORE", "Batch", "Item", "Sample", "Window"),
    "camera": ("CameraFrameDataModule",),
    "camera_labels": ("CameraClassificationDataModule",),
    "camera_objects": ("CameraDetectionDataModule",),
    "classes": ("ClassSpec", "Classes"),
    "classification": ("ClassificationDataModule",),
    "datamodule": ("DataModule", "SegmentationDataModule"),
    "detection": ("DetectionDataModule",),
    "errors": ("DataError",),
    "geotiff": ("GeoTiffDataModule",),
    "geotiff_labels": ("GeoTiffClassificationDataModule",),
    "geotiff_objects": ("GeoTiffDetectionDataModule",),
    "labelled": ("LabelledBatch", "LabelledSample"),
    "labels": ("VectorOptions",),
    "leaks": ("Leak", "find_leaks"),
    "sampling": ("SampleKey",),
    "splits": ("DriveSplit", "FileSplit", "FolderSplit", "ListSplit", "PlaceSplit", "SceneSplit"),
    "statistics": ("Normalisation", "Statistics"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"datamodules.{module}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
