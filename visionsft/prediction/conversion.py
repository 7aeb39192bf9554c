"""Conversion: a PyTorch model in the formats of ONNX and OpenVINO, and sessions that compute it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from visionsft.errors import ConfigError, ConversionError

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    import openvino

OPSET = 18
"""Of ONNX: the one that PyTorch's exporter is written for."""


def to_onnx(model: nn.Module, image: Tensor) -> onnx.ModelProto:
    """`model` for images (N, C, H, W) float32 of the size of `image`: any N, and just this H and W.

    By torch.export and its translation to ONNX: the older exporter, by TorchScript, is faster, but can't
    translate the resampled position embeddings of ViTs and the pooling of UPerNet.
    """
    require("onnxscript", extra="onnx")
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                (image[:1].repeat(2, 1, 1, 1),),  # torch.export takes the length 1 for a constant
                input_names=["image"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConversionError(f"the model can't be converted to ONNX: {_first_line(error)}") from error
    assert program is not None
    return program.model_proto


def to_openvino(model: nn.Module, image: Tensor) -> openvino.Model:
    """`model` for images of the shape of `image`, (1, C, H, W) float32.

    By TorchScript: through ONNX it takes several times as long and gives a slower model. Where a ViT's
    position embedding is resampled for the size, OpenVINO's bicubic kernel differs a little from PyTorch's
    (0.1 % of the logits in test_vit).
    """
    import openvino
    from openvino import frontend

    refusals = (
        RuntimeError,
        frontend.GeneralFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )
    try:
        with _silence(), torch.no_grad():
            traced = torch.jit.trace(model, image, check_trace=False)  # it computes the model twice more
            return openvino.convert_model(traced, input=[tuple(image.shape)])
    except refusals as error:
        raise ConversionError(f"the model can't be converted to OpenVINO: {_first_line(error)}") from error


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for a serialised ONNX model, with as many threads as PyTorch uses."""
    require("onnxruntime", extra="onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.NotImplemented, state.RuntimeException) as error:
        raise ConversionError(f"ONNX Runtime can't open the model: {_first_line(error)}") from error


def require(module: str, *, extra: str) -> None:
    """ConfigError that says how to install a package that isn't."""
    if find_spec(module) is None:
        raise ConfigError(f"{module} is not installed: pip install 'visionsft[{extra}]'")


def _first_line(error: BaseException) -> str:
    """What the first cause of an error says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporters print, log and warn of on their way."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
