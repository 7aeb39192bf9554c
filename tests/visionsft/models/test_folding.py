"""Folding: the same answers from fewer operations."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import Tensor, nn

from backbones import accelerate_depthwise, create_backbone
from visionsft.errors import RunError
from visionsft.models import create_classifier, create_detector, create_model
from visionsft.models.folding import TOLERANCE, Rectifier, SameConvolution, fold
from visionsft.models.inference import compute_logits
from visionsft.training.loading import LoadedRun


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def trained(model: Any) -> Any:
    """In eval mode, with norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight, module.bias):
                if values is not None:
                    values.data.add_(torch.randn(values.shape, generator=generator) * 0.2)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval().requires_grad_(False)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"])
@pytest.mark.parametrize(
    ("head", "left"), [("unet", 0), ("segformer", 1)]
)  # its norm sees a sum of convolutions
def test_same_logits_without_norms(backbone: str, head: str, left: int) -> None:
    model = create_model(create_backbone(backbone, weights="none"), 5, head=head)
    accelerate_depthwise(model)
    before = norms(trained(model))
    keys = list(model.state_dict())
    folded = fold(model, lambda each: [each(image(1, 3, 64, 64))])
    for size in ((2, 3, 64, 96), (1, 3, 50, 70)):
        torch.testing.assert_close(folded(image(*size)), model(image(*size)), rtol=1e-4, atol=1e-4)
    assert norms(folded) == left < before
    assert (norms(model), list(model.state_dict())) == (before, keys), "the model itself stays as it was"


@pytest.mark.parametrize("kernel", [3, 5, (5, 3)])
@pytest.mark.parametrize("groups", [1, 4])
def test_same_padding_of_every_parity(kernel: Any, groups: int) -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(Conv2dSame(4, 8, kernel, stride=2, groups=groups)))
    assert accelerate_depthwise(model) == (groups == 4)
    folded = fold(model, lambda each: [each(image(1, 4, 8, 8))])
    assert isinstance(folded[0], SameConvolution)
    for height in (1, 2, 3, 8, 9):
        for width in (1, 2, 7, 10):
            maps = image(2, 4, height, width)
            torch.testing.assert_close(folded(maps), model(maps), rtol=1e-5, atol=1e-5)


def test_weights_are_shared() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    folded = fold(model, lambda each: [each(image(1, 3, 8, 8))])
    assert folded[3].weight is model[3].weight
    assert folded[0].weight is not model[0].weight
    assert isinstance(folded[2], Rectifier)


class Skipping(nn.Module):
    """Reads what its convolution gives before the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, values: Tensor) -> Tensor:
        found = self.conv(values)
        result: Tensor = self.norm(found) + found
        return result


class Sharing(nn.Module):
    """One convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.first(self.conv(values)) - self.second(self.conv(values + 1))
        return result


def own_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False, affine=True))


def other_weights() -> nn.Module:
    return nn.Sequential(StdConv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.mark.parametrize("make", [Skipping, Sharing, other_weights])
def test_what_cannot_be_folded_is_left(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = trained(make())
    folded = fold(model, lambda each: [each(image(1, 3, 8, 8))])
    assert norms(folded) == norms(model)
    assert torch.equal(folded(image(2, 3, 9, 9)), model(image(2, 3, 9, 9)))


class Locking(nn.Module):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lock = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Lock()

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(values))
        return result


class Large(Locking):
    """Takes no small images."""

    def __init__(self) -> None:
        super().__init__()
        del self.lock
        self.conv = nn.Conv2d(3, 3, 99)


class Peeking(Locking):
    """Reads its norm's weight."""

    def __init__(self) -> None:
        super().__init__()
        del self.lock

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * self.norm.weight[0]


@pytest.mark.parametrize("make", [Locking, Large, Peeking])
def test_what_refuses_is_used_as_it_is(make: Callable[[], nn.Module]) -> None:
    model = trained(make())
    with pytest.warns(UserWarning, match="isn't folded"):
        assert fold(model, lambda each: [each(image(1, 3, 8, 8))]) is model
    assert norms(model) == 1


def test_norms_without_statistics_are_left() -> None:
    model = own_statistics().eval()
    assert norms(fold(model, lambda each: [each(image(1, 3, 8, 8))])) == 1


def test_one_convolution_and_norm_for_several_maps() -> None:
    conv, norm = nn.Conv2d(3, 3, 1), BatchNormAct2d(3, act_layer=nn.ReLU6)
    model = trained(nn.ModuleList([conv, norm]))

    def run(each: Any) -> list[Tensor]:
        return [each[1](each[0](image(1, 3, side, side))) for side in (8, 4)]

    folded = fold(model, run)
    assert norms(folded) == 0
    torch.testing.assert_close(run(folded), run(model), rtol=1e-5, atol=1e-5)


def as_loaded(model: nn.Module, precision: torch.dtype | None = None) -> LoadedRun:
    settings: Any = {"config": None, "run": None, "precision": precision, "channels_last": False}
    return LoadedRun(model=trained(model), **settings)


@pytest.mark.parametrize("name", ["fpn", "upernet", "classifier", "fcos", "faster_rcnn"])
def test_a_loaded_run_computes_folded(name: str) -> None:
    backbone = create_backbone("test_resnet", weights="none", in_chans=4)
    if name == "classifier":
        loaded = as_loaded(create_classifier(backbone, 3))
    elif name in ("fcos", "faster_rcnn"):
        loaded = as_loaded(create_detector(backbone, 3, head=name))
    else:
        loaded = as_loaded(create_model(backbone, 3, head=name))
    assert norms(loaded.folded.backbone) == 0 < norms(loaded.model.backbone)
    assert loaded.folded is loaded.folded
    if name in ("fcos", "faster_rcnn"):
        torch.testing.assert_close(
            loaded.folded.features(image(1, 4, 64, 64)), loaded.model.features(image(1, 4, 64, 64))
        )
    else:
        plain = compute_logits(loaded.model, image(2, 4, 40, 72), precision=None, channels_last=False)
        torch.testing.assert_close(loaded.logits(image(2, 4, 40, 72)), plain, rtol=1e-4, atol=1e-4)


FAMILIES = """
resnet18 resnext50_32x4d regnety_002 efficientnet_b0 tf_efficientnetv2_b0 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv2_050 ghostnet_100 ghostnetv2_100 hrnet_w18_small densenet121 dla34 vgg11_bn repvgg_a0 mobileone_s0 fastvit_t8
levit_128s convnext_atto edgenext_xx_small mobilevit_xxs mobilevitv2_050 res2net50_26w_4s skresnet18 seresnet18
xception41
cspresnet50 darknet53 efficientvit_b0 efficientvit_m0 mnasnet_small lcnet_050 hardcorenas_a rexnet_100 selecsls42b dpn68
resnest14d ecaresnet26t nf_resnet50 resnetv2_50 pvt_v2_b0 poolformer_s12 maxvit_nano_rw_256 coatnet_nano_rw_224
repvit_m0_9
rdnet_tiny vovnet39a visformer_tiny convmixer_768_32 tiny_vit_5m_224 hgnet_tiny starnet_s1 ese_vovnet19b_dw fbnetc_100
gernet_s tresnet_m xcit_nano_12_p16_224 focalnet_tiny_srf swiftformer_xs mambaout_femto
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.split())
def test_timms_families(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="none")
    accelerate_depthwise(backbone)
    loaded = as_loaded(create_model(backbone, 3))
    shape = (2, 3, *(backbone.geometry.size or (96, 128)))
    plain = compute_logits(loaded.model, image(*shape), precision=None, channels_last=False)
    assert (loaded.logits(image(*shape)) - plain).abs().max() < TOLERANCE * plain.abs().max()


@pytest.mark.parametrize("size", [None, (80, 96)])
def test_models_without_norms_and_of_one_size(size: tuple[int, int] | None) -> None:
    backbone = create_backbone("test_vit", weights="none", img_size=size)
    loaded = as_loaded(create_model(backbone, 3, head="fpn"), torch.bfloat16)
    calls: list[Any] = []
    with backbone.register_forward_hook(lambda *_: calls.append(1)):
        assert norms(loaded.folded) == 0 < norms(loaded.model)
    assert not calls, "nothing of it is to be folded"
    shape = (1, 3, *(size or (64, 64)))
    plain = compute_logits(loaded.model, image(*shape), precision=torch.bfloat16, channels_last=False)
    torch.testing.assert_close(loaded.logits(image(*shape)), plain, rtol=0.05, atol=0.05)


def test_weights_that_are_not_numbers_are_not_hidden() -> None:
    loaded = as_loaded(create_model(create_backbone("test_resnet", weights="none"), 3))
    next(loaded.model.parameters())[0] = torch.nan
    with pytest.raises(RunError, match="is not a number"):
        loaded.logits(image(1, 3, 32, 32))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(("act", "reference"), [(nn.ReLU, F.relu), (nn.ReLU6, F.relu6)])
def test_every_bfloat16_number(
    act: type[nn.ReLU | nn.ReLU6], reference: Callable[[Tensor], Tensor], inplace: bool
) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    values = values[~values.isnan()]
    kept = values.clone()
    found = Rectifier(act(inplace))(values)
    assert torch.equal(found, reference(kept))
    assert torch.equal(values, found if inplace else kept)


def test_gradients_and_other_types() -> None:
    values = image(100).requires_grad_()
    Rectifier(nn.ReLU6())(values.bfloat16() * 4).sum().backward()
    assert torch.equal(values.grad, 4.0 * ((values * 4 > 0) & (values * 4 < 6)))  # type: ignore[arg-type]
    assert torch.equal(Rectifier(nn.ReLU())(image(9).double()), F.relu(image(9).double()))
