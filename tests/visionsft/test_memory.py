"""The allocator's settings: inside a model's pass, after it, and during training."""

from __future__ import annotations

import mmap
import sys

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


def test_only_what_has_grown_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(memory, "_malloc_trim", given.append)
    sizes = iter([1000, 1000 + memory.SPARE, 1001 + memory.SPARE, 900])
    monkeypatch.setattr(memory, "_resident", lambda: next(sizes))
    usual = None
    for expected in (0, 0, 1, 1):
        usual = memory.limit_growth(usual)
        assert (usual, len(given)) == (1000, expected)


def test_the_size_of_a_process_is_known_on_linux() -> None:
    before = memory._resident()
    with mmap.mmap(-1, 2**26) as block:  # new to the process, as a block of the heap needn't be
        block.write(b"1" * 2**26)
        assert memory._resident() >= before + 2**25 * (sys.platform == "linux")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_mallopt", None)
    monkeypatch.setattr(memory, "_malloc_trim", None)
    monkeypatch.setattr(memory, "_kept", False)
    memory.keep_freed_memory()
    assert memory.limit_growth(1) == 1
    with memory.keeping_freed_memory():
        pass
