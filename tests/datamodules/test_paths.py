"""Paths that stand for several files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.paths import UNWATCHED, changed, files_of, stem_of, together

NAMES = st.text("abB01_-./", min_size=1, max_size=8)


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_what_is_put_together_is_taken_apart_again(names):
    paths = [f"/nowhere/{name}.tif" for name in names]
    assert files_of(together(paths)) == paths


def test_it_is_readable():
    assert together(["/d/T33_B02_10m.tif", "/d/T33_B12_10m.tif"]) == "/d/T33_{B02,B12}_10m.tif"
    assert together(["https://h/a/B02.tif", "https://h/a/B8A.tif"]) == "https://h/a/{B02,B8A}.tif"
    assert stem_of("/d/T33_{B02,B12}_10m.tif") == "T33_10m"
    assert stem_of("https://h/a/scene.tif?token=1.2") == "scene"


def test_what_can_not_be_put_together(tmp_path):
    with pytest.raises(DataError, match="can't have"):
        together(["/d/a,b.tif", "/d/c.tif"])
    with pytest.raises(DataError, match="the same file"):
        together(["/d/a.tif", "/d/a.tif"])
    odd = tmp_path / "a{b,c}.tif"
    odd.touch()
    assert files_of(str(odd)) == [str(odd)]  # a file that is really called so


def test_what_a_server_does_not_tell_at_the_moment_is_no_change():
    known = (("https://h/a.tif", 10, 1), ("https://h/b.tif", 20, 2))
    assert changed(known, known) == []
    assert changed((known[0], ("https://h/b.tif", *UNWATCHED)), known) == []
    assert changed((known[0], ("https://h/b.tif", 20, 3)), known) == ["https://h/b.tif"]
