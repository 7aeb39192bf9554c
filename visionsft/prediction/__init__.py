"""Prediction: class maps of images without labels, and a model's way into other software."""

from visionsft.prediction.exporting import export_onnx
from visionsft.prediction.predicting import predict

__all__ = ["export_onnx", "predict"]
