"""Cutting: a backbone in two, so that what its frozen modules give is computed once and trained on many times.

Nothing here knows a family of models. A module without trained parameters whose output depends on no trained
parameter is constant; of the constant outputs, those that something else reads directly are the cut (found with
autograd: every constant output becomes a leaf, and a leaf with a gradient is read). `prefix` records them and
stops after the last; `suffix` runs the model again with the constant modules answering from the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.errors import BackboneError

Call = tuple[str, int]
"""A module's name and which of its calls in one forward pass (from 0)."""
Shapes = dict[Call, tuple[int, ...]]
_Answer = Callable[[Call, Callable[[], Any]], Any]


class Cut:
    """A backbone, cut where its frozen modules end; made by `cut_backbone`.

    Valid as long as the same stages are frozen.
    """

    def __init__(self, backbone: Backbone, modules: dict[str, nn.Module], stored: Sequence[Call]) -> None:
        self.backbone = backbone
        self.stored = tuple(stored)
        self._modules = modules
        self._shapes: dict[tuple[int, int], Shapes] = {}

    @property
    def whole(self) -> bool:
        """Whether the maps themselves are what is stored: nothing of the backbone trains."""
        return not self.stored

    @torch.no_grad()
    def prefix(self, image: Tensor) -> list[Tensor]:
        """image: (B, C, H, W) float, normalised -> what `suffix` needs, each (B, ...)."""
        if self.whole:
            return self.backbone(image)  # type: ignore[no-any-return]
        found: dict[Call, Tensor] = {}

        def record(call: Call, compute: Callable[[], Any]) -> Any:
            output = compute()
            if call in self.stored:
                found[call] = output.clone()  # what follows may change it in place
                if len(found) == len(self.stored):
                    raise _CompleteError
            return output

        try:
            with _answering(self._modules, record):
                self.backbone(image)
        except _CompleteError:
            pass
        return [found[call] for call in self.stored]

    def suffix(self, stored: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """What `prefix` gave for images of `size` (H, W) -> the backbone's maps, exactly those of a whole pass."""
        if self.whole:
            return list(stored)
        shapes = self._shapes_at(size)
        known = dict(zip(self.stored, stored, strict=True))
        first = stored[0]

        def replay(call: Call, compute: Callable[[], Any]) -> Any:
            if call in known:
                return known[call]
            if call in shapes:  # read by other constant modules only: its numbers don't matter
                return first.new_zeros(()).expand(len(first), *shapes[call])
            return compute()

        image = first.new_zeros(()).expand(len(first), self._in_chans, *size)
        outermost = {name: self._modules[name] for name, _ in shapes}  # what is inside of these isn't reached
        with _answering(outermost, replay):
            return self.backbone(image)  # type: ignore[no-any-return]

    @property
    def _in_chans(self) -> int:
        return len(self.backbone.mean)

    def _shapes_at(self, size: tuple[int, int]) -> Shapes:
        """Shapes, without batch, of all constant outputs."""
        if size not in self._shapes:
            constant = {}
            example = next(self.backbone.parameters())
            image = torch.zeros(1, self._in_chans, *size, device=example.device)
            with _evaluating(self.backbone):
                for call, output in _trace(self.backbone, self._modules, image).items():
                    constant[call] = tuple(output.shape[1:])
            self._shapes[size] = constant
        return self._shapes[size]


def cut_backbone(backbone: Backbone, *, size: tuple[int, int]) -> Cut:
    """The cut behind the frozen stages, tried on an image of `size` (H, W).

    A BackboneError says why where there is no such cut: nothing is frozen, the first module already trains,
    or both halves together don't give what the whole gives.
    """
    if not any(p.requires_grad for p in backbone.parameters()):
        return Cut(backbone, {}, ())
    if backbone.has_adapters:
        raise BackboneError(f"{backbone.name} can't be cut: LoRA adapters train in all of its blocks")
    modules = _frozen_modules(backbone)
    example = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, len(backbone.mean), *size, generator=generator).to(example.device)
    with _evaluating(backbone), torch.autocast(example.device.type, enabled=False):
        constant = _trace(backbone, modules, image)
        stored = _read_directly(backbone, modules, set(constant), image)
        if not stored:
            raise BackboneError(f"{backbone.name} can't be cut: it trains from its first module on")
        cut = Cut(backbone, modules, stored)
        with torch.no_grad():
            whole = backbone(image)
            halves = cut.suffix(cut.prefix(image), size)
    if not all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True)):
        raise BackboneError(f"{backbone.name} can't be cut: its halves don't give what the whole gives")
    return cut


class _CompleteError(Exception):
    """Everything that the suffix needs is there."""


def _frozen_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """Modules that give the same in every epoch for the same input, by their names."""
    was = backbone.training
    backbone.train()  # what is frozen stays in eval mode
    found = {
        name: module
        for name, module in backbone.model.named_modules()
        if not any(p.requires_grad for p in module.parameters())
        and not any(part.training for part in module.modules())
    }
    backbone.train(was)
    return found


def _trace(backbone: Backbone, modules: dict[str, nn.Module], image: Tensor) -> dict[Call, Tensor]:
    """Outputs that depend on no trained parameter, of the outermost frozen modules that give one tensor."""
    found: dict[Call, Tensor] = {}

    def look(call: Call, compute: Callable[[], Any]) -> Any:
        output = compute()
        if isinstance(output, Tensor) and not output.requires_grad:
            found[call] = output
        return output

    with torch.enable_grad(), _answering(modules, look):
        backbone(image)
    return found


def _read_directly(
    backbone: Backbone, modules: dict[str, nn.Module], constant: set[Call], image: Tensor
) -> list[Call]:
    """Constant outputs on which the maps depend other than through another constant output."""
    leaves: dict[Call, Tensor] = {}

    def isolate(call: Call, compute: Callable[[], Any]) -> Any:
        output = compute()
        if call not in constant:
            return output
        leaves[call] = output.detach().requires_grad_()
        return leaves[call].clone()  # a leaf couldn't be changed in place

    image = image.clone().requires_grad_()
    with torch.enable_grad(), _answering(modules, isolate):
        maps = backbone(image)
    total = sum(m.float().square().sum() for m in maps)
    of_image, *gradients = torch.autograd.grad(total, [image, *leaves.values()], allow_unused=True)
    if of_image is not None:
        raise BackboneError(f"{backbone.name} can't be cut: a trained module reads the image itself")
    return [call for call, gradient in zip(leaves, gradients, strict=True) if gradient is not None]


@contextmanager
def _answering(modules: dict[str, nn.Module], answer: _Answer) -> Iterator[None]:
    """Let `answer(call, compute)` stand for each outermost call of these modules' forward."""
    counts = dict.fromkeys(modules, 0)
    inside = False

    def wrapped(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return forward(*args, **options)
            number = counts[name]
            counts[name] += 1

            def compute() -> Any:
                nonlocal inside
                inside = True
                try:
                    return forward(*args, **options)
                finally:
                    inside = False

            return answer((name, number), compute)

        return call

    try:
        for name, module in modules.items():
            module.forward = wrapped(name, module.forward)
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    """In eval mode: a trial must not move the statistics of batch norms that train."""
    was = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was)
