"""Configs: what is accepted, and the one message that names file, line, key and mend for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config.errors import ConfigError
from tunesmith.config.load import apply_overrides, dump, parse_yaml, validate
from tunesmith.config.schema import schema
from tunesmith.verbs.run_config import TrainRun, load_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def sets(config: TrainRun) -> list[str]:
    return [choice.set for choice in config.data.train]


def test_model_and_data_alone_are_valid(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "model: demo\ndata: lantern_bay\n"), [])
    assert (config.model.ref, sets(config), config.stage.kind, config.method.kind) == (
        "demo", ["lantern_bay"], "sft", "lora",
    )  # fmt: skip


def test_the_resolved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["model=demo", "data=[a, b]", "method.rank=4", "train.lr=3e-4", "data.date=2026-01-02"])
    again = load_config(write(tmp_path, dump(config)), [])
    assert again == config
    assert config.train.lr == 3e-4 and config.method.rank == 4 and sets(config) == ["a", "b"]


def test_overrides_keep_the_rest_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "model: demo\ndata: {train: x, max_length: 99}\nmethod: lora\n")
    config = load_config(path, ["data=y", "method.rank=2", "train.epochs=1"])
    assert sets(config) == ["y"] and config.data.max_length == 99 and config.method.rank == 2


def test_a_wrong_key_of_a_set_is_the_only_complaint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "model: demo\ndata:\n- {set: x, wieght: 2}\n"), [])
    assert "unknown key 'data.train.0.wieght'" in str(caught.value) and "at least 1" not in str(caught.value)


def test_configs_are_frozen() -> None:
    config = load_config(None, ["model=demo", "data=x"])
    with pytest.raises(ValueError):
        config.train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: demo\ndata: x\nmethod:\n  kind: lora\n  rnk: 3\n", ["my.yaml:5", "'method.rnk'", "did you mean 'rank'"]),
        ("model: demo\ndata: x\ntrian:\n  lr: 1\n", ["my.yaml:3", "'trian'", "did you mean 'train'"]),
        ("model: demo\ndata: x\ntrain:\n  lr: abc\n", ["my.yaml:4", "'train.lr'", "number", "'abc'"]),
        ("model: demo\ndata: x\ntrain:\n  lr: -1\n", ["'train.lr'", "more than 0"]),
        ("model: demo\ndata: x\nstage: sftt\n", ["'stage'", "'sftt'", "did you mean 'sft'"]),
        ("model: demo\ndata: x\nprecision: bf17\n", ["'precision'", "'bf17'", "did you mean 'bf16'"]),
        ("model: demo\ndata: x\nmodel: y\n", ["my.yaml:3", "'model'", "twice", "line 1"]),
        ("data: x\n", ["'model' is missing", "hint"]),
        ("model: demo\n", ["'data' is missing"]),
        ("model: [demo\ndata: x\n", ["my.yaml:2", "not valid YAML"]),
        ("- model\n- data\n", ["expected keys", "a list"]),
        ("model: demo\ndata: x\ntrain: {lr: .nan}\n", ["'train.lr'", "finite"]),
        ("model: demo\ndata: x\nmethod: {kind: lora, rank: 2.5}\n", ["'method.rank'", "whole number", "2.5"]),
        ("model: !!python/object/apply:os.system [ls]\ndata: x\n", ["not valid YAML"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_message(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), [])
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("override", "word"), [("train.lr", "not an override"), ("=3", "not an override"), ("train..lr=3", "not an override"), ("train.lr.x=3", "no keys below")])  # fmt: skip
def test_bad_overrides(override: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        apply_overrides({"train": {"lr": 1}}, [override])


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml", [])
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path, [])


def test_numbers_without_a_point_are_numbers() -> None:
    values, _ = parse_yaml("a: 1e-4\nb: 2E5\nc: 1.5e3\nd: e5\n", "x")
    assert values == {"a": 1e-4, "b": 2e5, "c": 1500.0, "d": "e5"}


def test_several_errors_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TrainRun, {"model": "demo", "data": "x", "train": {"lr": "x", "batchs": 2}})
    assert "'train.lr'" in str(caught.value) and "'train.batchs'" in str(caught.value)


def test_the_schema_describes_every_setting() -> None:
    drawn = schema(TrainRun)
    assert drawn["$defs"]["TrainConfig"]["properties"]["lr"]["description"] == "Peak learning rate."
    for name, part in drawn["$defs"].items():
        for key, field in part.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key} has no help"
            assert key == "kind" or field.get("zh"), f"{name}.{key} has no Chinese help"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("model: demo\ndata: x\n", True),
        ("model: demo\ndata: {train: {set: x, limit: 3}}\n", True),
        ("model: demo\ndata: [x, {set: y, weight: 2, columns: {prompt: q}}]\n", True),
        ("model: demo\ndata: [{set: y, wieght: 2}]\n", False),
        ("model: demo\ndata: {train: [{limit: 2}]}\n", False),
        ("model: demo\ndata: [x, y]\nmethod: lora\nstage: sft\n", True),
        ("model: {ref: demo}\ndata: {train: x, eval: [y]}\nmethod: {kind: lora, rank: 4, targets: q_proj}\n", True),
        ("model: demo\ndata: x\nmethod: lroa\n", False),
        ("model: demo\ndata: x\ntrain: {lr: fast}\n", False),
        ("model: demo\n", False),
    ],
)
def test_editors_and_the_loader_agree(tmp_path: Path, text: str, valid: bool) -> None:
    """What the JSON Schema takes, the loader takes, and the other way round: short forms included."""
    import jsonschema
    import yaml

    errors = list(jsonschema.Draft202012Validator(schema(TrainRun)).iter_errors(yaml.safe_load(text)))
    assert (not errors) == valid, errors
    if valid:
        load_config(write(tmp_path, text), [])
    else:
        with pytest.raises(ConfigError):
            load_config(write(tmp_path, text), [])


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "saved").glob("config-*.yaml")), ids=lambda p: p.stem)
def test_configs_saved_by_earlier_versions_still_load(path: Path) -> None:
    """One file per released version, written by that version and never changed afterwards."""
    config = load_config(path, [])
    assert config.model.ref == "demo" and sets(config) == ["lantern_bay"] and config.method.rank == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=full", "model.quantize=hqq"], "keeps them in few bits"),
        (["method.init=pissa", "model.quantize=bnb"], "computed from the base's weights"),
        (["method=full", "precision=fp16", "train.update_in_backward=true"], "cannot be skipped"),
        (["method=full", "precision=fp16", "train.optimizer=lomo"], "cannot be skipped"),
        (["train.early_stopping=2", "data.eval_share=0"], "nothing is held out"),
    ],
)
def test_what_cannot_be_had_together_is_said_from_the_config(settings: list[str], words: str) -> None:
    from tunesmith.verbs.combinations import check_combinations

    check_combinations(load_config(None, ["model=demo", "data=x", "method=lora", "model.quantize=hqq"]))
    with pytest.raises(ConfigError, match=words):
        check_combinations(load_config(None, ["model=demo", "data=x", *settings]))
