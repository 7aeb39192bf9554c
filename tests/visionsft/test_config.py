"""Configurations: what is accepted, and what each mistake is answered with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from visionsft.config import (
    BUILTIN_HEADS,
    TYPED_OPTIONS,
    CameraData,
    CustomHead,
    FpnHead,
    FullStrategy,
    GeoTiffData,
    GradualStrategy,
    LoraStrategy,
    SegmentationConfig,
    Trainer,
    UnetHead,
)
from visionsft.errors import ConfigError
from visionsft.loading import dump_config, load_config

SATELLITE = """\
data:
  kind: geotiff
  root: scenes
  classes:
    - {name: water, values: 1, colour: '#0000ff'}
    - {name: forest, values: [2, 3]}
backbone:
  name: resnet18
"""
DRIVING = """\
data:
  kind: camera
  root: frames
  layout: camvid
backbone: {name: test_vit, weights: none}
head: {name: segformer}
"""


def write(folder: Path, text: str, name: str = "demo.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the ConfigError, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


# ------------------------------------------------------------------------------------ what is right


def test_defaults_and_the_name_of_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SATELLITE, "my scenes.yaml"))
    assert config.name == "my-scenes"
    assert isinstance(config.data, GeoTiffData)
    assert config.data.augment.pipeline == "nadir"
    assert config.data.classes is not None
    assert config.data.classes[0].values == (1,)
    assert isinstance(config.strategy, FullStrategy)
    assert isinstance(config.head, FpnHead)
    assert config.task.loss[0].name == "cross_entropy"


def test_camera(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, DRIVING))
    assert isinstance(config.data, CameraData)
    assert config.data.augment.pipeline == "driving"
    assert config.head.name == "segformer"


def test_one_loss_or_several(tmp_path: Path) -> None:
    one = load_config(write(tmp_path, SATELLITE + "task: {loss: {name: dice}}"))
    assert [term.name for term in one.task.loss] == ["dice"]
    two = load_config(write(tmp_path, SATELLITE + "task: {loss: [{name: lovasz}, {class_weights: inverse}]}"))
    assert [term.name for term in two.task.loss] == ["lovasz", "cross_entropy"]


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = SATELLITE + "strategy: {lr: 1e-4, weight_decay: 0}\ntrainer: {precision: 32, options: {x: 1e-3}}"
    config = load_config(write(tmp_path, text))
    assert config.strategy.lr == 1e-4
    assert config.trainer.precision == "32"
    assert config.trainer.options == {"x": 1e-3}


def test_nodata_may_be_nan(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SATELLITE), ["data.nodata=.nan"])
    assert isinstance(config.data, GeoTiffData)
    assert config.data.nodata is not None
    assert math.isnan(config.data.nodata)


@pytest.mark.parametrize("name", BUILTIN_HEADS)
def test_builtin_heads(tmp_path: Path, name: str) -> None:
    assert load_config(write(tmp_path, SATELLITE), [f"head.name={name}"]).head.name == name


def test_a_head_of_ones_own(tmp_path: Path) -> None:
    head = load_config(write(tmp_path, SATELLITE), ["head={name: 'a.b:Mine', options: {width: 3}}"]).head
    assert head == CustomHead(name="a.b:Mine", options={"width": 3})


def test_byte_order_mark(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "\ufeff" + SATELLITE)).backbone.name == "resnet18"


def test_values_never_change(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        load_config(write(tmp_path, SATELLITE)).seed = 3  # type: ignore[misc]


# ---------------------------------------------------------------------------------------- overrides


def test_set_changes_adds_and_creates(tmp_path: Path) -> None:
    overrides = [
        "data.batch_size=4",
        "strategy={kind: lora, rank: 4}",
        "trainer.early_stopping.patience=3",
        "data.classes.1.name=trees",
        "task.loss.name=dice",
        "seed=1",
        "seed=2",
    ]
    config = load_config(write(tmp_path, SATELLITE), overrides)
    assert config.data.batch_size == 4
    assert isinstance(config.strategy, LoraStrategy)
    assert config.strategy.rank == 4
    assert config.trainer.early_stopping is not None
    assert config.trainer.early_stopping.patience == 3
    assert config.data.classes is not None
    assert config.data.classes[1].name == "trees"
    assert config.task.loss[0].name == "dice"
    assert config.seed == 2


def test_set_makes_a_section_of_the_default_kind(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SATELLITE), ["strategy.lr=0.1", "head.width=32", "data.split.val=v"])
    assert config.strategy == FullStrategy(lr=0.1)
    assert config.head == FpnHead(width=32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.batch_size=four",
            "--set data.batch_size=four: data.batch_size: given 'four'; must be a valid int",
        ),
        ("data.batchsize=4", "--set data.batchsize=4: data.batchsize: unknown key; nearest: batch_size"),
        ("data.batch_size", "--set data.batch_size: must have the form key=value"),
        ("=4", "--set =4: must have the form key=value"),
        ("data..root=4", "--set data..root=4: must have the form key=value"),
        ("seed=", "--set seed=: has no value; write null for none"),
        ("head.width=[1", "--set head.width=[1: YAML syntax at column 1"),
        (
            "data.images=*.tif",
            "expected alphabetic or numeric character, but found '.' while scanning an alias; a text",
        ),
        ("backbone.name.x=1", "--set backbone.name.x=1: backbone.name is 'resnet18', which has no keys"),
        ("data.classes.7.name=x", "data.classes is a list of 2 items, counted from 0: no item '7'"),
        ("data.classes.first.name=x", "data.classes is a list of 2 items, counted from 0: no item 'first'"),
        (
            "strategy=lora",
            "strategy: 'lora' is not a mapping; write {kind: lora}; allowed: full, feature_based",
        ),
        (
            "backbone=null",
            "--set backbone=null: backbone: given null (nothing); must be a mapping with keys such as",
        ),
        ("data.nothing.at.all=1", "data.nothing: unknown key"),
    ],
)
def test_mistakes_of_set(tmp_path: Path, override: str, message: str) -> None:
    (line,) = mistakes(tmp_path, SATELLITE, override)
    assert message in line


def test_set_changes_the_kind_and_leaves_keys_of_the_old_one(tmp_path: Path) -> None:
    text = SATELLITE + "strategy:\n  kind: layerwise\n  last: 2\n"
    assert mistakes(tmp_path, text, "strategy.kind=lora") == [
        "demo.yaml:11: strategy.last: unknown key for kind 'lora'; it belongs to kind 'layerwise' "
        "(--set strategy.kind=lora changed it; --set 'strategy={kind: lora}' replaces the section)"
    ]
    assert isinstance(load_config(write(tmp_path, text), ["strategy={kind: lora}"]).strategy, LoraStrategy)


# --------------------------------------------------------------------------------- mistakes at once


def test_every_mistake_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
data:
  kind: geotif
  rot: scenes
  batch_size: four
  classes:
    - {name: water, values: 1, colour: blue}
    - {name: water, values: [2, 2.5]}
  use_bands: [red, nir]
  bands: [red, green]
  augment: {pipeline: nadirr, scale: [2, 0.5]}
  split: {by: place}
backbone: {weights: hubb}
head: {name: unett, widht: 3}
strategy:
  kind: gradual
  start: 30
  stages: [layer4]
trainer:
  epochs: 3
  precision: 64
  lr: 3
  devices: all
  options: {max_epochs: 3}
epochs: 3
seed: 1
seed: 2
"""
    found = mistakes(tmp_path, text, "trainer.clip=-1")
    starts = [
        "demo.yaml:1: data.root: missing: folder of the data",
        "demo.yaml:2: data.kind: 'geotif' is not allowed; allowed: geotiff, camera; nearest: geotiff",
        "demo.yaml:3: data.rot: unknown key; nearest: root",
        "demo.yaml:4: data.batch_size: given 'four'; must be a valid integer",
        "demo.yaml:6: data.classes.0.colour: given 'blue'; must match pattern",
        "demo.yaml:7: data.classes.1.values.1: given 2.5; must be a valid integer or a text",
        "demo.yaml:7: data.classes.1.name: another class is named 'water' too",
        "demo.yaml:8: data.use_bands: 'nir' is not one of bands: red, green",
        "demo.yaml:10: data.augment.pipeline: 'nadirr' is not allowed; allowed: nadir, driving, none",
        "demo.yaml:10: data.augment.scale: [2, 0.5] must go from smallest to largest",
        "demo.yaml:11: data.split.block: missing: side of a block of ground, in metres",
        "demo.yaml:12: backbone.name: missing: a timm model name",
        "demo.yaml:12: backbone.weights: 'hubb' is not allowed; allowed: hub, pypi, none, or the path",
        "demo.yaml:13: head.name: 'unett' is not allowed; allowed: linear, segformer",
        "demo.yaml:13: head.widht: unknown key; nearest: widths",
        "demo.yaml:16: strategy.start: epoch 30 is never reached: trainer.epochs is 3",
        "demo.yaml:17: strategy.stages: unknown key for kind 'gradual'; it belongs to kind 'layerwise'",
        "demo.yaml:20: trainer.precision: 64 is not allowed; allowed: auto, 32, bf16, 16",
        "demo.yaml:21: trainer.lr: unknown key here; it belongs to strategy.lr",
        "demo.yaml:22: trainer.devices: given 'all'; must be a valid integer or 'auto'",
        "demo.yaml:23: trainer.options.max_epochs: is set by trainer.epochs; give it there",
        "demo.yaml:24: epochs: unknown key here; it belongs to trainer.epochs",
        "demo.yaml:26: seed: given twice, first in line 25",
        "--set trainer.clip=-1: trainer.clip: given -1; must be greater than 0",
    ]
    assert len(found) == len(starts), "\n".join(found)
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start)


def test_a_custom_head_is_offered_where_the_name_is_wrong(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, SATELLITE, "head.name=unett")
    assert line.endswith("or a class of your own as 'my_package.heads:MyHead'; nearest: unet")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("trainer: {epochs: 0}", "demo.yaml:9: trainer.epochs: given 0; must be greater than 0"),
        ("trainer: {epochs: true}", "trainer.epochs: given true; must be a valid integer"),
        ("trainer: {epochs: 1.5}", "trainer.epochs: given 1.5; must be a valid integer"),
        ("trainer: {epochs: null}", "trainer.epochs: given null (nothing); must be a valid integer"),
        ("trainer: {clip: .inf}", "trainer.clip: given inf; must be a finite number"),
        ("trainer: {ema: 1.0}", "trainer.ema: given 1.0; must be less than 1"),
        (
            "trainer: {loggers: [tensorbord]}",
            "trainer.loggers.0: 'tensorbord' is not allowed; allowed: tensorboard",
        ),
        ("trainer: 3", "trainer: given 3; must be a mapping with keys such as epochs"),
        ("trainer:", "trainer: given null (nothing); must be a mapping"),
        ("strategy: {kind: [1]}", "strategy.kind: [1] is not allowed; allowed: full"),
        ("strategy: {kind: {a: 1}}", "strategy.kind: a mapping is not allowed; allowed: full"),
        ("strategy: {kind: null}", "strategy.kind: null (nothing) is not allowed; allowed: full"),
        (
            "strategy: {kind: layerwise}",
            "strategy.stages: neither is given; give exactly one of 'stages' and 'last'",
        ),
        ("strategy: {kind: layerwise, stages: [a], last: 1}", "strategy.stages: both are given"),
        ("strategy: {momentum: 0.5}", "strategy.momentum: is for optimizer 'sgd' only"),
        (
            "head: {name: 'a.b:C', width: 3}",
            "head.width: unknown key; arguments of your own class go below 'options'",
        ),
        ("head: {name: 'a b:C'}", "head.name: given 'a b:C'; must match pattern"),
        ("task: {loss: []}", "task.loss: given []; must have at least 1 item"),
        (
            "task: {loss: {name: dice, weight: 0}}",
            "demo.yaml:9: task.loss.weight: given 0; must be greater than 0",
        ),
        (
            "task: {loss: [{name: dic}]}",
            "task.loss.0.name: 'dic' is not allowed; allowed: cross_entropy, dice",
        ),
        ("task: {loss: dice}", "task.loss: given 'dice'; must be a list"),
        ("name: ../other", "name: given '../other'; must match pattern"),
        ("name: ..", "name: given '..'; must match pattern"),
        ("runs: 3", "runs: given 3; must be a path"),
        ("batch_size: 3", "batch_size: unknown key here; it belongs to data.batch_size"),
        ("whatever: 3", "whatever: unknown key; allowed: name, runs, seed, task, data"),
        ("'odd key': 3", "'odd key': unknown key"),
    ],
)
def test_a_mistake_in_a_section(tmp_path: Path, section: str, message: str) -> None:
    (line,) = mistakes(tmp_path, SATELLITE + section)
    assert message in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop=[8, 8]", "data.crop: unknown key for kind 'geotiff'; it belongs to kind 'camera'"),
        ("data.vector.buffer=0", "data.vector.buffer: given 0; must be greater than 0"),
        ("data.vector={colum: name}", "data.vector.colum: unknown key; nearest: column"),
        ("data.use_bands=[red, red]", "data.use_bands: 'red' is given twice"),
        ("data.labels=labels/{nmae}.tif", "has the unknown placeholder {nmae}; allowed: {name}, {split}"),
        ("data.images='images/{name.tif'", "is not a valid template"),
        (
            "data.split={by: drive, pattern: '('}",
            "data.split.pattern: given '('; is not a regular expression",
        ),
        ("data.split={by: drive, pattern: 'x'}", "must have a group in parentheses"),
        ("data.split={by: scene, val: 0.6, test: 0.5}", "data.split.test: val 0.6 + test 0.5 leaves nothing"),
        ("data.split={by: place}", "data.split.block: missing: side of a block"),
        ("data.split={by: sceen}", "data.split.by: 'sceen' is not allowed; allowed: folder, list, scene"),
        ("data.classes.1.values=[1]", "data.classes.1.values: 1 already belongs to another class"),
        ("data.ignore=[3]", "data.classes.1.values: 3 already belongs to another class or to 'ignore'"),
        (
            "data.classes.1.values=true",
            "data.classes.1.values: given true; must be a valid integer or a text",
        ),
        ("data.classes.0={values: 1}", "data.classes.0.name: missing: of the class, unique"),
        ("data.augment.scale=[1]", "data.augment.pipeline: missing"),
        ("data.augment={pipeline: none, scale: [1]}", "data.augment.scale: too few values; given [1]"),
        (
            "data.augment={pipeline: none, scale: [1, 2, 3]}",
            "data.augment.scale: given [1, 2, 3]; must have at most 2",
        ),
    ],
)
def test_a_mistake_in_the_data(tmp_path: Path, override: str, message: str) -> None:
    assert message in mistakes(tmp_path, SATELLITE, override)[0]


def test_only_pairs_have_patterns(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, DRIVING, "data.images='*.png'")
    assert line.endswith("data.images: is for the layouts pairs, coco, coco_panoptic, video; the layout is 'camvid'")


@pytest.mark.parametrize("option", TYPED_OPTIONS)
def test_trainer_options_have_no_second_way(tmp_path: Path, option: str) -> None:
    (line,) = mistakes(tmp_path, SATELLITE, f"trainer.options.{option}=1")
    assert f"is set by {TYPED_OPTIONS[option]}" in line


def test_typed_options_name_fields_that_exist() -> None:
    fields = {name.removeprefix("trainer.") for name in TYPED_OPTIONS.values() if "." in name}
    assert fields <= set(Trainer.model_fields)


def test_missing_sections(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "seed: 1") == [
        "demo.yaml: data: missing section; its 'kind' may be geotiff, camera",
        "demo.yaml: backbone: missing section; it needs at least name",
    ]
    assert (
        mistakes(tmp_path, "data: {}\nbackbone: {}")[0]
        == "demo.yaml:1: data.kind: missing; allowed: geotiff, camera"
    )


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    found = mistakes(tmp_path, SATELLITE + "".join(f"key{number}: 1\n" for number in range(200)))
    assert len(found) == 51
    assert found[-1] == "... and 150 more mistakes"


# ---------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it needs at least the sections data and backbone"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n- 2\n", "must be a mapping with the keys name, runs, seed"),
        (b"hello", "given 'hello'"),
        (b"\xff\xd8\xff\xe0", "is not a UTF-8 text (byte 0)"),
        (b"a: \x00\x01", "not a YAML text"),
        (b"data: [1\nbackbone: x", "demo.yaml:1: YAML syntax"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "demo.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, SATELLITE, "camvid.yaml")
    with pytest.raises(ConfigError, match=r"canvid\.yml: no such file; nearest: .*camvid\.yaml"):
        load_config(tmp_path / "canvid.yml")
    with pytest.raises(ConfigError, match=r"no such file; in that folder: camvid\.yaml"):
        load_config(tmp_path / "zzz")
    with pytest.raises(ConfigError, match="no such file, and no folder"):
        load_config(tmp_path / "nowhere" / "demo.yaml")
    with pytest.raises(ConfigError, match=r"is a folder, not a configuration file; in it: camvid\.yaml"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="can't be read: Not a directory"):
        load_config(tmp_path / "camvid.yaml" / "demo.yaml")


# ----------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.nodata=-1e-7", "strategy.lr=1e-5", "data.ignore=['1e5', 'no', '010', 'null', '#ff0000']"],
        ["strategy={kind: gradual}", "head={name: unet}", "task.loss=[{name: focal}, {name: lovasz}]"],
        [
            "data.split={by: place, block: 1000}",
            "trainer.ema=0.99",
            "trainer.options={a: ['1e4', 1e4, null]}",
        ],
        ["head={name: 'a.b:C', options: {x: {y: [1, 2]}}}", "data.classes.0.name='12:30 ü'"],
    ],
)
def test_what_is_dumped_loads_as_the_same(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(write(tmp_path, SATELLITE), overrides)
    assert load_config(write(tmp_path, dump_config(config), "again.yaml")) == config


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["lora", "unet", "place", "camera", "1e-4", "#ff0000", "a.b:C"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "name", "by", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)
SECTIONS = {"data": GeoTiffData, "strategy": GradualStrategy, "head": UnetHead, "trainer": Trainer}
KEYS = [
    *(f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields),
    *SegmentationConfig.model_fields,
    *("backbone.name", "backbone.weights", "trainer.options.a", "task.loss", "task.loss.0", "data.classes.1"),
    *("data.classes.0.values", "data.split.by", "data.augment.scale"),
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_nothing_makes_it_crash(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Any values anywhere: a Config that survives the round trip, or a ConfigError with a line a mistake."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    try:
        config = load_config(write(tmp_path, SATELLITE + "task: {loss: [{name: dice}]}"), overrides)
    except ConfigError as error:
        lines = str(error).splitlines()
    else:
        lines = []
        again = load_config(write(tmp_path, dump_config(config), "again.yaml"))
        assert dump_config(again) == dump_config(config)
    assert all(": " in line for line in lines)


# ------------------------------------------------------------------------------------------ schema


def test_the_schema_accepts_what_loads() -> None:
    schema = SegmentationConfig.model_json_schema()
    assert schema["required"] == ["data", "backbone"]
    assert schema["additionalProperties"] is False
    heads = [schema["$defs"][ref["$ref"].split("/")[-1]] for ref in schema["properties"]["head"]["oneOf"]]
    names = [head["properties"]["name"].get("const") for head in heads]
    assert names == [*BUILTIN_HEADS, None]
