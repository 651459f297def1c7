"""The form as pure functions: JSON Schema -> fields, and what was typed -> the shortest YAML."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import yaml

import web_fake
from tunesmith.config.base import Config, setting
from tunesmith.config.load import validate
from tunesmith.config.schema import schema
from tunesmith.web import form_values
from tunesmith.web.form_model import Bound, Field, leaves, read_form

FIELDS = read_form(schema(web_fake.FakeConfig))


def by_id(fields: tuple[Field, ...] = FIELDS) -> dict[str, Field]:
    return {f.id: f for f in leaves(fields)}


def minimal(state: dict[str, Any], fields: tuple[Field, ...] = FIELDS) -> dict[str, Any]:
    reading = form_values.read_values(fields, state)
    assert not reading.problems
    return reading.config


def test_every_leaf_of_the_schema_is_drawn_with_its_shape() -> None:
    shapes = {id: f.shape for id, f in by_id().items()}
    assert shapes == {
        "model.ref": "text", "model.quantize": "choice", "model.rope": "group", "model.rope.factor": "number",
        "data.train": "lines", "data.weights": "yaml", "data.seed": "integer",
        "method": "union", "method[lora].rank": "integer", "method[lora].dropout": "number",
        "method[lora].targets": "lines", "method[full].embeddings": "switch",
        "train.steps": "integer", "train.lr": "number", "train.pause": "number", "train.batch": "scalar",
        "train.packing": "switch", "precision": "choice", "output.name": "text",
    }  # fmt: skip


def test_help_in_both_languages_bounds_defaults_and_the_first_screen() -> None:
    fields = by_id()
    rank = fields["method[lora].rank"]
    assert rank.help == {"en": "Rank of the adapters.", "zh": "适配器的秩。"}
    assert (rank.low, rank.high, rank.default, rank.basic) == (Bound(1), Bound(1024), 8, True)
    assert rank.path == ("method", "rank")
    assert fields["train.lr"].low == Bound(0, open=True)
    assert fields["method[lora].dropout"].high == Bound(1, open=True)
    assert fields["method"].default == "lora"
    assert [k.name for k in fields["method"].kinds] == ["lora", "full"]
    assert fields["model.ref"].must_be_filled
    assert not fields["output.name"].must_be_filled
    assert {id for id, f in fields.items() if f.basic} == {
        "model.ref", "data.train", "method", "method[lora].rank", "method[full].embeddings", "train.steps", "train.lr",
        "output.name",
    }  # fmt: skip


def test_sets_are_lines_of_names_or_of_mappings() -> None:
    """The real config: one line per set, a mapping in braces; what was written comes back the same."""
    from tunesmith.verbs.run_config import TrainRun

    fields = read_form(schema(TrainRun))
    shapes = {id: f.shape for id, f in by_id(fields).items() if id.startswith("data.")}
    assert (shapes["data.train"], shapes["data.eval"]) == ("lines", "lines")
    assert not any(id.startswith("data.train.") for id in shapes), "an entry's settings are no fields of their own"
    sets = ["mine", {"set": "data/*.jsonl", "columns": {"prompt": "问", "response": "答" * 60}, "weight": 2}]
    state = form_values.from_config(fields, {"model": {"ref": "demo"}, "data": {"train": sets}})
    assert len(state["data.train"].splitlines()) == 2
    assert minimal(state, fields)["data"]["train"] == sets
    one = form_values.from_config(fields, {"data": {"train": {"set": "mine", "limit": 3}}})
    assert form_values.read_values(fields, one).config["data"]["train"] == [{"set": "mine", "limit": 3}]


def test_only_what_differs_is_written() -> None:
    assert minimal({"model.ref": "demo"}) == {"model": {"ref": "demo"}}
    assert minimal({"model.ref": "demo", "train.steps": "30", "train.lr": "2e-4"}) == {"model": {"ref": "demo"}}
    state = {"model.ref": "demo", "data.train": "a.jsonl\n\n b.jsonl ", "train.lr": "1e-5", "train.packing": False}
    assert minimal(state) == {
        "model": {"ref": "demo"},
        "data": {"train": ["a.jsonl", "b.jsonl"]},
        "train": {"lr": 1e-5, "packing": False},
    }


def test_unions_write_the_kind_alone_or_with_its_changed_fields() -> None:
    assert minimal({"model.ref": "m", "method": "full"})["method"] == "full"
    assert minimal({"model.ref": "m", "method[lora].rank": "16"})["method"] == {"kind": "lora", "rank": 16}
    other = {"model.ref": "m", "method": "full", "method[lora].rank": "16"}
    assert minimal(other)["method"] == "full", "fields of a kind that is not chosen do not count"


def test_groups_that_may_be_absent_are_switched_on() -> None:
    assert minimal({"model.ref": "m", "model.rope": True})["model"] == {"ref": "m", "rope": {}}
    on = {"model.ref": "m", "model.rope": True, "model.rope.factor": "4"}
    assert minimal(on)["model"] == {"ref": "m", "rope": {"factor": 4}}
    assert minimal({"model.ref": "m", "model.rope.factor": "4"})["model"] == {"ref": "m"}


def test_mixed_numbers_and_words_and_boxes_of_yaml() -> None:
    state = {"model.ref": "m", "train.batch": "8", "data.weights": "{a: 1, b: 0.5}", "data.seed": "7"}
    assert minimal(state)["train"] == {"batch": 8}
    assert minimal(state)["data"] == {"weights": {"a": 1, "b": 0.5}, "seed": 7}
    assert minimal({"model.ref": "m", "train.batch": "auto"}) == {"model": {"ref": "m"}}


@pytest.mark.parametrize(
    ("id", "typed", "text"),
    [
        ("model.ref", "", "problem.required"),
        ("train.lr", "fast", "problem.number"),
        ("train.lr", "nan", "problem.number"),
        ("train.lr", "0", "problem.above"),
        ("train.lr", "1.5", "problem.at_most"),
        ("train.steps", "1.5", "problem.integer"),
        ("train.steps", "0", "problem.at_least"),
        ("method[lora].dropout", "1", "problem.below"),
        ("data.weights", "{a: ", "problem.yaml"),
    ],
)
def test_what_cannot_be_used_is_said(id: str, typed: str, text: str) -> None:
    problems = form_values.read_values(FIELDS, {"model.ref": "m", id: typed}).problems
    assert {k: p.text for k, p in problems.items()} == {id: text}


def test_yaml_of_the_form_gives_the_config_meant_and_comes_back() -> None:
    state = {
        "model.ref": "组织/模型", "model.rope": True, "model.rope.factor": "4", "data.train": "a.jsonl", "method": "full",
        "method[full].embeddings": False, "train.lr": "1e-05", "train.batch": "8", "precision": "fp32",
    }  # fmt: skip
    text = form_values.to_yaml(minimal(state))
    config = validate(web_fake.FakeConfig, yaml.safe_load(text))
    assert config.train.lr == 1e-5 and config.method.embeddings is False and config.model.ref == "组织/模型"
    assert form_values.from_config(FIELDS, yaml.safe_load(text)) == state
    assert form_values.from_config(FIELDS, config.model_dump(mode="json")) == state
    assert form_values.to_yaml({}) == ""


def test_a_state_from_the_browser_is_not_trusted() -> None:
    raw = {
        "model.ref": "m", "train.packing": "yes", "precision": "fp64", "method": "evil", "nope": 1, "train.steps": 5,
        "train.batch": "8",
    }  # fmt: skip
    assert form_values.tidy(FIELDS, raw) == {"model.ref": "m", "train.batch": "8"}
    assert form_values.tidy(FIELDS, ["model.ref"]) == {}


def test_error_messages_find_their_fields() -> None:
    def named(message: str, state: dict[str, Any] | None = None) -> list[str]:
        return [f.id for f in form_values.named_fields(FIELDS, state or {}, message)]

    assert named("new-run.yaml:3: 'train.lr': expected number, got 'abc'") == ["train.lr"]
    assert named("'data.train.0': a.jsonl is not there") == ["data.train"]
    assert named("'method.rank': too big") == ["method[lora].rank"]
    assert named("'method.rank': too big", {"method": "full"}) == ["method"]
    assert named("rows of data.max_length=3 are short") == ["data"]
    assert named("the disk is full") == []


class _Inner(Config):
    ref: str = setting(zh="甲")
    """Reference."""
    depth: int | Literal["all"] = setting("all", zh="乙")
    """Depth."""


class _Odd(Config):
    short: str | _Inner = setting("demo", zh="丙")
    """Text or object."""
    rows: list[_Inner] = setting(list, zh="丁")
    """Objects in a list."""
    either: bool | Literal["auto"] = setting("auto", zh="戊")
    """Yes, no or auto."""
    maybe: bool | None = setting(None, zh="己")
    """Yes, no or nothing."""
    one_or_many: str | list[str] = setting("a", zh="庚")
    """A word or words."""


def test_shorthands_and_odd_types() -> None:
    fields = read_form(schema(_Odd))
    found = by_id(fields)
    assert found["short.ref"].shape == "text" and found["short.ref"].default == "demo"
    assert found["rows"].shape == "yaml"
    assert (found["either"].shape, found["either"].choices) == ("choice", ("auto", True, False))
    assert (found["maybe"].shape, found["maybe"].nullable) == ("choice", True)
    assert found["one_or_many"].shape == "lines"
    state = {"short.ref": "other", "rows": "- {ref: x}", "either": True, "maybe": False, "one_or_many": "a\nb"}
    config = minimal(state, fields)
    assert config == {
        "short": {"ref": "other"},
        "rows": [{"ref": "x"}],
        "either": True,
        "maybe": False,
        "one_or_many": ["a", "b"],
    }
    assert validate(_Odd, config).rows[0].ref == "x"


def test_a_schema_that_refers_to_itself_ends() -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/Node"}, "n": {"type": "integer", "default": 1}}}
    fields = read_form({"$defs": {"Node": node}, "properties": {"tree": {"$ref": "#/$defs/Node"}}})
    assert {f.id: f.shape for f in leaves(fields)} == {"tree.child": "yaml", "tree.n": "integer"}
