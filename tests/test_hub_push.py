"""Pushing over real HTTP: private, whole or not at all, resumed, named as the licence demands, and without a token in any word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_standin import Counting, files_of, write_model
from push_standin import Hub, serving
from tunesmith.config.errors import ServerError, UserError
from tunesmith.hub.licences import licence_files, told_by_text
from tunesmith.hub.push import check_push, demanded_name, destination, push

TOKEN = "hf_aSecretThatNobodySees"
LLAMA = """LLAMA 3.2 COMMUNITY LICENSE AGREEMENT
… you shall also include “Llama” at the beginning of any such AI
model name."""


class Counts(Counting):
    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serving(Hub()) as found:
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(name, found.url)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
            monkeypatch.setenv(name, TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        yield found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model", shards=3, elements=9000)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "hidden").write_text("not for others")
    return folder


def wanted(model: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(model).items() if not name.startswith(".")}


@pytest.mark.parametrize("to", ["me/small", "ms:me/small"])
@pytest.mark.parametrize("public", [False, True])
def test_everything_in_one_commit(hub: Hub, model: Path, to: str, public: bool) -> None:
    progress = Counts()
    address = push(model, to, progress, public=public)
    assert address.startswith(hub.url) and address.endswith("me/small")
    assert hub.repos["me/small"] == wanted(model)
    assert hub.private["me/small"] is not public
    assert hub.commits == ["Uploaded with Tunesmith"]
    assert progress.done == progress.tasks[-1][1] == sum(map(len, wanted(model).values()))
    assert f"Bearer {TOKEN}" in hub.tokens


@pytest.mark.parametrize("to", ["me/small", "ms:me/small"])
def test_interrupted_and_given_again(hub: Hub, model: Path, to: str) -> None:
    """The second large file is refused: nothing shows there; the same command sends only what is missing."""
    hub.refuse_after = 1
    with pytest.raises(ServerError) as caught:
        push(model, to, Counts())
    assert "not sent again" in str(caught.value.hint) and TOKEN not in str(caught.value)
    assert hub.repos["me/small"] == {} and hub.commits == [] and len(hub.puts) == 1
    hub.refuse_after = None
    push(model, to, Counts())
    assert hub.repos["me/small"] == wanted(model)
    assert len(hub.puts) == len(set(hub.puts)) == 3


def test_weights_of_an_earlier_push_go_away(hub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, "me/small", Counts())
    single = write_model(tmp_path / "single")
    push(single, "me/small", Counts())
    assert {name for name in hub.repos["me/small"] if name.endswith(".safetensors")} == {"model.safetensors"}
    assert "model.safetensors.index.json" not in hub.repos["me/small"]


OTHERS = ("vae/diffusion.safetensors", "checkpoint-500/model.safetensors", "model.bf16.safetensors", "README.md")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("pushed", "there", "gone"),
    [
        (("model.safetensors",), (*SHARDS, "adapter_model.safetensors"), SHARDS),
        (SHARDS, ("model.safetensors", "model-00001-of-00003.safetensors"), ("model-00001-of-00003.safetensors", "model.safetensors")),
        (("adapter_model.safetensors",), (*SHARDS, "model.safetensors"), ()),
        (("sub/model.safetensors",), (*SHARDS, "sub/model-00001-of-00002.safetensors"), ()),
    ],
)  # fmt: skip
def test_only_shards_of_what_is_pushed_go_away(
    hub: Hub, tmp_path: Path, pushed: tuple[str, ...], there: tuple[str, ...], gone: tuple[str, ...]
) -> None:
    """Of the same name in the top folder; weights in folders, of other names, and adapters stay. What goes is said."""
    hub.repos["me/small"], hub.private["me/small"] = dict.fromkeys((*there, *OTHERS), b"older"), True
    for name in pushed:
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes(b"newer")
    progress = Counts()
    push(tmp_path / "new", "me/small", progress)
    assert set(hub.repos["me/small"]) == {*there, *OTHERS, *pushed} - set(gone)
    assert [line.partition(": ")[2] for line in progress.lines] == ([", ".join(gone)] if gone else [])


def test_a_gguf_beside_other_weights_leaves_them_there(hub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, "me/small", Counts())
    for level in ("Q8_0", "Q4_K_M"):
        file = tmp_path / f"small-{level}.gguf"
        file.write_bytes(b"GGUF" + level.encode() + bytes(70_000))
        push(file, "me/small", Counts())
    there = set(hub.repos["me/small"])
    assert {"small-Q8_0.gguf", "small-Q4_K_M.gguf", *(p.name for p in model.glob("*.safetensors"))} <= there


@pytest.mark.parametrize("to", ["me/small", "ms:me/small"])
def test_a_public_repository_is_named(hub: Hub, model: Path, to: str) -> None:
    push(model, to, Counts(), public=True)
    progress = Counts()
    push(model, to, progress)
    assert any("is public" in line for line in progress.lines)


@pytest.mark.parametrize("to", ["me/small", "ms:me/small"])
def test_refused_and_without_a_token(hub: Hub, model: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.forbidden = True
    with pytest.raises(UserError, match="does not let this token") as caught:
        push(model, to, Counts())
    assert TOKEN not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no token") as caught:
        push(model, to, Counts())
    assert "TOKEN" in str(caught.value.hint)


def test_the_licence_demands_a_name(hub: Hub, model: Path) -> None:
    (model / "LICENSE.txt").write_text(LLAMA)
    with pytest.raises(UserError, match="begins with 'Llama'") as caught:
        push(model, "me/small", Counts())
    assert "hf:me/Llama-small" in str(caught.value.hint)
    with pytest.raises(UserError, match="begins with 'Llama'"):
        check_push("ms:me/small", model)
    assert hub.repos == {}, "nothing was sent"
    push(model, "me/Llama-small", Counts())
    assert "me/Llama-small" in hub.repos


@pytest.mark.parametrize(
    ("licence", "name"), [("llama3.1", "Llama"), ("llama3", "Llama 3"), ("apache-2.0", None), ("gemma", None)]
)
def test_the_card_alone_tells_the_licence(tmp_path: Path, licence: str, name: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    assert demanded_name({"README.md": tmp_path / "README.md"}) == name


@pytest.mark.parametrize(
    ("to", "words"), [("name", "org/name"), ("gh:me/x", "no hub"), ("me/a--b", "not a model's name")]
)
def test_wrong_destinations(to: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        destination(to)


def test_what_is_not_pushed(hub: Hub, model: Path, tmp_path: Path) -> None:
    for name in ("old.bin", "sub/Model.PKL", "rows.npy", "it.pickle", "it.joblib", "it.ckpt"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"pickle")
        with pytest.raises(UserError, match="may run code") as caught:
            push(model, "me/small", Counts())
        assert name in str(caught.value)
        (model / name).unlink()
    secret = tmp_path / "id_rsa"
    secret.write_text("a private key")
    (model / "NOTICE").symlink_to(secret)
    with pytest.raises(UserError, match="lies elsewhere"):
        push(model, "me/small", Counts())
    with pytest.raises(UserError, match="no folder"):
        push(tmp_path / "gone", "me/small", Counts())
    assert hub.repos == {}


def test_one_file_with_what_is_named_beside_it(hub: Hub, model: Path) -> None:
    """What else lies there stays here; a licence that travels along is obeyed."""
    gguf = model / "small-Q8_0.gguf"
    gguf.write_bytes(b"GGUF" + bytes(70_000))
    (model / "LICENSE-of-something-else.txt").write_text("not this file's")
    card, licence = model / "README.md", model / "LICENSE"
    push(gguf, "ms:me/small", Counts(), beside={"README.md": card, "LICENSE": licence})
    sent: dict[str, Any] = hub.repos["me/small"]
    assert set(sent) == {"README.md", "LICENSE", "small-Q8_0.gguf"}
    licence.write_text(LLAMA)
    with pytest.raises(UserError, match="begins with 'Llama'"):
        push(gguf, "ms:me/other", Counts(), beside={"LICENSE": licence})


def test_no_token_to_a_foreign_upload_host(hub: Hub, model: Path) -> None:
    """ModelScope says where large files go; a host that is not ModelScope's own gets the file and no token."""
    with serving(Hub()) as elsewhere:
        hub.uploads_at = elsewhere.url.replace("127.0.0.1", "localhost")
        with pytest.raises(ServerError):  # the stand-in's commit asks for blobs that went elsewhere
            push(model, "ms:me/small", Counts())
        assert len(elsewhere.puts) == 3
        assert not [token for token in elsewhere.tokens if token and TOKEN in token], elsewhere.tokens
        assert not [cookie for cookie in elsewhere.cookies if cookie and TOKEN in cookie]


@pytest.mark.parametrize("to", ["me/small", "ms:me/small"])
def test_a_token_is_in_no_words(hub: Hub, model: Path, to: str) -> None:
    """A hub, or a proxy before it, that repeats what it was sent: the error's words have no token."""
    hub.repeats = True
    with pytest.raises(UserError) as caught:
        push(model, to, Counts())
    assert TOKEN not in str(caught.value) and "…" in str(caught.value), str(caught.value)


def test_which_files_are_licences(tmp_path: Path) -> None:
    theirs = {
        "LICENSE", "License.txt", "LICENCE.md", "LICENSE-APACHE-2.0", "LICENSE-MODEL", "NOTICE", "Notice.txt", "COPYING",
        "USE_POLICY.md", "use-policy.txt", "acceptable_use_policy.md", "third_party_notices.txt", "llama-LICENSE",
    }  # fmt: skip
    others = {
        "license.key", "license.pem", "noticeboard.txt", "notice.py", "licensed.txt", "LICENSE_server.pem", ".license",
        "copying-machine.jpg", "license.json", "COPYING.tar.gz",
    }  # fmt: skip
    for name in theirs | others:
        (tmp_path / name).write_text("words")
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_text("a private key")
    above = tmp_path.parent / "NOTICE-ABOVE"
    above.write_text("of the whole project")
    (tmp_path / "LICENSE-LINK").symlink_to(secret)
    (tmp_path / "NOTICE-ABOVE").symlink_to(above)
    assert {path.name for path in licence_files(tmp_path)} == theirs | {"NOTICE-ABOVE"}


def test_what_a_licence_is_called(tmp_path: Path) -> None:
    assert told_by_text(tmp_path) is None
    (tmp_path / "LICENSE").write_text(" " * 30 + "Apache License\n" + " " * 27 + "Version 2.0, January 2004\n")
    assert told_by_text(tmp_path) == "apache-2.0"
    (tmp_path / "LICENSE").write_text("Terms of our own, unlike the MIT License in that\n")
    assert told_by_text(tmp_path) is None, "only a title counts"
    (tmp_path / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n")
    assert told_by_text(tmp_path) == "llama3.2"
