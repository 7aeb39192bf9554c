"""The doors: sorted, complete, and every name behind them exists."""

from __future__ import annotations

from importlib import import_module

import pytest

import visionsft


def test_all_is_sorted_and_complete() -> None:
    assert visionsft.__all__ == sorted(visionsft.__all__, key=lambda name: (not name[0].isupper(), name))
    assert set(visionsft.__all__) == set(visionsft._HOMES)
    assert set(visionsft.__all__) <= set(dir(visionsft))


@pytest.mark.parametrize("name", visionsft.__all__)
def test_every_name_is_what_its_home_defines(name: str) -> None:
    found = getattr(visionsft, name)
    assert found is getattr(import_module(visionsft._HOMES[name]), name)
    assert callable(found)
    assert found.__name__ == name
    assert found.__doc__


def test_no_module_hides_a_function() -> None:
    """`visionsft.fit` must stay the function whatever has been imported before it."""
    for name in visionsft.__all__:
        with pytest.raises(ModuleNotFoundError):
            import_module(f"visionsft.{name}")


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        visionsft.train  # noqa: B018
