"""The door of the package: sorted, complete, and light until something is used."""

from __future__ import annotations

import subprocess
import sys

import datamodules


def test_all_is_sorted_and_every_name_resolves():
    names = datamodules.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    assert sorted(names) == sorted(name for group in datamodules._MODULES.values() for name in group)
    for name in names:
        assert getattr(datamodules, name).__class__ is not None
    assert dir(datamodules) == sorted(names)


def test_unknown_names_are_attribute_errors():
    assert not hasattr(datamodules, "GeoTifDataModule")


def test_the_batch_alone_loads_no_heavy_library():
    code = (
        "import sys, datamodules.batch, datamodules.errors\n"
        "heavy = {'lightning', 'rasterio', 'albumentations', 'visionsft', 'backbones'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
