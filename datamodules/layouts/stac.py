"""STAC: scenes that a SpatioTemporal Asset Catalog names: an item, a collection of items, or a catalogue of them.

Read with pystac, the extra ``stac``; catalogues and assets may be remote. A scene's id is its item's, its group the
item's id and time.
"""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.batch import Item
from datamodules.errors import DataError
from datamodules.layouts import Listing
from datamodules.layouts.parsing import shorten
from datamodules.paths import is_remote, together

if TYPE_CHECKING:
    import pystac

SUFFIXES = (".json", ".geojson")


def is_stac(images: str) -> bool:
    """Whether a path is that of STAC JSON."""
    return images.partition("?")[0].lower().endswith(SUFFIXES)


def is_asset_key(labels: str) -> bool:
    """Whether labels are an asset of each item, and not a path."""
    return not any(sign in labels for sign in "/{.")


def scan(root: Path, *, items: str, labels: str, bands: Sequence[str] | None = None) -> Listing:
    """Every item of STAC JSON as a scene.

    items: path below `root`, absolute or remote; labels: key of an asset, or path of a label with ``{name}``, the
    item's id; bands: of the scenes, in this order: each the key of an asset with one band, or the name or common name
    of such an asset's band; or, all of them, the bands of one asset. None: of the only asset with the role 'data'.
    """
    href = items if is_remote(items) else str(root / items)
    if not is_remote(href) and not Path(href).is_file():
        return Listing()
    found, without_label = [], []
    seen: set[str] = set()
    for item in _read_items(href):
        if item.id in seen:
            raise DataError(f"{href}: the item {item.id} is given twice")
        seen.add(item.id)
        label = _label(item, labels, root)
        if label is None or not (is_remote(label) or Path(label).is_file()):
            without_label.append(f"{href}: {item.id}" + ("" if label is None else f" ({label})"))
            continue
        found.append(Item(item.id, _group(item), together(_images(item, bands, href)), label))
    if not seen:
        raise DataError(f"{href}: has no items")
    return Listing(sorted(found, key=lambda item: item.id), images_without_label=without_label)


def _read_items(href: str) -> list[pystac.Item]:
    try:
        import pystac
    except ModuleNotFoundError as error:
        raise DataError(f"STAC needs pip install 'visionsft[stac]' ({error})") from error
    try:
        content = json.loads(pystac.StacIO.default().read_text(href))
        if not isinstance(content, dict):
            raise DataError(
                f"{href}: holds {shorten(content)}; allowed: a STAC item, collection or catalogue"
            )
        kind = content.get("type")
        if kind == "Feature":
            items = [pystac.Item.from_dict(content, href=href)]
        elif kind == "FeatureCollection":
            _refuse_pages(content, href)
            items = list(pystac.ItemCollection.from_dict(content).items)
        elif kind in ("Collection", "Catalog"):
            items = list(pystac.read_file(href).get_items(recursive=True))  # type: ignore[attr-defined]
        else:
            raise DataError(
                f"{href}: its type is {shorten(kind)}; STAC has Feature, FeatureCollection, Collection and Catalog"
            )
    except (OSError, urllib.error.URLError, RecursionError) as error:
        raise DataError(f"{href}: can't be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:
        raise DataError(f"{href}: not STAC, or a damaged file: {type(error).__name__}: {error}") from error
    for item in items:
        if item.get_self_href() is None:
            item.set_self_href(href)
    return items


def _refuse_pages(content: dict[str, Any], href: str) -> None:
    """A server's answer that isn't all of it."""
    links = content.get("links") or []
    if any(isinstance(link, dict) and link.get("rel") == "next" for link in links):
        count = len(content.get("features", []))
        raise DataError(
            f"{href}: is the first page, with {count} items, of several; save all items in one file"
        )


def _group(item: pystac.Item) -> str:
    moment = item.datetime or item.common_metadata.start_datetime
    return item.id if moment is None else f"{item.id} {moment:%Y-%m-%dT%H:%M:%SZ}"


def _label(item: pystac.Item, labels: str, root: Path) -> str | None:
    if is_asset_key(labels):
        return None if labels not in item.assets else _href(item, labels)
    path = labels.replace("{name}", item.id)
    return path if is_remote(path) else str(root / path)


def _images(item: pystac.Item, bands: Sequence[str] | None, href: str) -> list[str]:
    """The files of a scene: one a band, or one with all."""
    where = f"{href}: item {item.id}"
    if bands is None:
        data = [key for key, asset in item.assets.items() if "data" in (asset.roles or [])]
        if len(data) != 1:
            raise DataError(
                f"{where}: has {len(data)} assets with the role 'data' ({', '.join(data) or 'none'}), so `bands` must "
                f"name assets; there are {', '.join(item.assets)}"
            )
        return [_href(item, data[0])]
    held = {key: _band_names(asset) for key, asset in item.assets.items()}
    for key, names in held.items():
        if (
            len(names) > 1
            and len(names) == len(bands)
            and all(band in also for band, also in zip(bands, names, strict=True))
        ):
            return [_href(item, key)]
    return [_href(item, _asset_of(band, held, where)) for band in bands]


def _asset_of(band: str, held: dict[str, list[set[str]]], where: str) -> str:
    """The key of the one asset that is or has this band alone."""
    if band in held and len(held[band]) <= 1:
        return band
    keys = [key for key, names in held.items() if len(names) == 1 and band in names[0]]
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise DataError(f"{where}: band {band!r} is in the assets {', '.join(keys)}; name the asset instead")
    several = [key for key, names in held.items() if any(band in also for also in names) or key == band]
    if several:
        names = ", ".join(min(also, key=len) for also in held[several[0]])
        raise DataError(
            f"{where}: the asset {several[0]!r} has several bands, {names}: `bands` must be all of them, in this "
            "order, and `use_bands` chooses"
        )
    nearest = get_close_matches(band, held, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise DataError(f"{where}: no asset is or has the band {band!r}; there are {', '.join(held)}{hint}")


def _band_names(asset: pystac.Asset) -> list[set[str]]:
    """Of each band of an asset, its name and common name: STAC 1.1's 'bands', or the extension 'eo:bands'."""
    bands = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or []
    keys = ("name", "common_name", "eo:common_name")
    return [{str(band[key]) for key in keys if band.get(key)} for band in bands if isinstance(band, dict)]


def _href(item: pystac.Item, key: str) -> str:
    href = item.assets[key].get_absolute_href()
    if href is None:
        raise DataError(
            f"{item.id}: where the asset {key!r} lies can't be told from {item.assets[key].href!r}"
        )
    return href.removeprefix("file://")
