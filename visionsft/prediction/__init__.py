"""Prediction: class maps of images without labels."""

from visionsft.prediction.predicting import predict

__all__ = ["predict"]
