"""The allocator's settings: inside a model's pass, after it, and during training."""

from __future__ import annotations

import pytest

from visionsft import memory


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What glibc was told last, by option."""
    told: dict[int, int] = {}
    monkeypatch.setattr(memory, "_mallopt", told.__setitem__)
    monkeypatch.setattr(memory, "_kept", False)
    return told


def test_only_the_models_pass_keeps_memory(settings: dict[int, int]) -> None:
    with memory.keeping_freed_memory():
        assert settings[memory._MMAP_MAX] == 0
    assert settings[memory._MMAP_MAX] == 2**16
    with pytest.raises(RuntimeError), memory.keeping_freed_memory():
        raise RuntimeError
    assert settings[memory._MMAP_MAX] == 2**16


def test_training_keeps_it_through_its_validations(settings: dict[int, int]) -> None:
    memory.keep_freed_memory()
    with memory.keeping_freed_memory():
        pass
    assert settings[memory._MMAP_MAX] == 0


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_mallopt", None)
    monkeypatch.setattr(memory, "_malloc_trim", None)
    monkeypatch.setattr(memory, "_kept", False)
    memory.keep_freed_memory()
    memory.give_back_freed_memory()
    with memory.keeping_freed_memory():
        pass
