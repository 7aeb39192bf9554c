"""Prediction: maps of scenes of any size, and class maps of camera frames."""

from visionsft.prediction.mapping import SceneOptions, ScenePredictor
from visionsft.prediction.predicting import Outcome, Predictions, predict, predict_all
from visionsft.prediction.scenes import Band, blend_tiles, row_bands

__all__ = [
    "Band",
    "Outcome",
    "Predictions",
    "SceneOptions",
    "ScenePredictor",
    "blend_tiles",
    "predict",
    "predict_all",
    "row_bands",
]
