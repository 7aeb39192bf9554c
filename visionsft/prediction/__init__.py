"""Prediction: maps of scenes of any size, class maps of camera frames, and a model's way into other software."""

from visionsft.prediction.detections import DetectionOptions
from visionsft.prediction.exporting import export_onnx
from visionsft.prediction.labelling import LabelOptions
from visionsft.prediction.mapping import SceneOptions, ScenePredictor, predict_scene, scene_bands
from visionsft.prediction.predicting import Outcome, Predictions, predict, predict_all
from visionsft.prediction.scenes import Band, blend_tiles, row_bands
from visionsft.prediction.slicing import SceneDetections, Slices, detect_image, detect_scene
from visionsft.prediction.stills import FrameOptions
from visionsft.prediction.vectorising import VectorOptions

__all__ = [
    "Band",
    "DetectionOptions",
    "FrameOptions",
    "LabelOptions",
    "Outcome",
    "Predictions",
    "SceneDetections",
    "SceneOptions",
    "ScenePredictor",
    "Slices",
    "VectorOptions",
    "blend_tiles",
    "detect_image",
    "detect_scene",
    "export_onnx",
    "predict",
    "predict_all",
    "predict_scene",
    "row_bands",
    "scene_bands",
]
