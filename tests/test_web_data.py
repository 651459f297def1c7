"""The data page: what it asks of the command line, how it reads the answers, and the page in a real Chromium."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.errors import UserError
from tunesmith.config.plugins import load, names
from tunesmith.data.columns import FieldMap
from tunesmith.data.detect import detect
from tunesmith.web import data_request, data_rows, histogram
from tunesmith.web.commands import COMMAND, split_message
from tunesmith.web.data_report import KEEP, Report, parse, read_report
from tunesmith.web.data_request import Request, of_config, of_fields, of_query
from tunesmith.web.job import Cancelled, Job
from tunesmith.web.language import Texts, table
from tunesmith.web.sentences import mend_in_words, reason_in_words
from web_browser import Tab
from web_server import Server

FOUND = [
    {"instruction": "What is 2+2?", "output": "4"},
    {"instruction": "What is 2+2?", "output": "5"},
    {"instruction": "Hi <b>there</b>", "output": "<script>window.hit = 1</script><img src=x onerror=parent.hit=1>"},
    *({"instruction": f"Number {n}", "output": n} for n in range(5)),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with findings: markup, a contradiction, five rows that cannot be read."""
    path = tmp_path_factory.mktemp("data") / "found.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FOUND))
    return path


@pytest.fixture(autouse=True)
def source_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))


def checked(*sets: str) -> Report:
    return asyncio.run(Job(COMMAND, Request(sets).check()).run(read_report, answers=(0, 2)))


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_arguments_are_never_taken_for_options_or_settings() -> None:
    assert Request(("-m", "--fix"), "--x", 64).check() == [
        "data", "check", "--json", "--model=--x", "--", "-m", "--fix", "data.max_length=64",
    ]  # fmt: skip
    assert Request(("a=b", "c"),).check()[-2:] == ["--", 'data.train=["a=b", "c"]']  # fmt: skip
    assert Request(("a", "b")).show("b", 7, 5) == ["data", "show", "--json", "-n", "5", "--row", "7", "--", "b"]
    assert data_request.written(Request(("my data.jsonl",)).check()) == "tunesmith data check -- 'my data.jsonl'"


def test_names_with_a_dash_or_an_equals_sign_reach_the_command_as_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'--fix'"):
        checked("--fix")
    with pytest.raises(UserError, match=r"'output\.dir=x'"):
        checked("output.dir=x")
    path = tmp_path / "day=1.jsonl"
    path.write_text(json.dumps(FOUND[0]) + "\n")
    assert checked(str(path)).sets[0]["rows"] == 1


def test_fields_say_what_is_wrong() -> None:
    assert of_fields(" a \n\nb\na", " demo ", "64") == (Request(("a", "b"), "demo", 64), {})
    assert of_fields("\n", "", "")[1] == {"sets": "problem.required"}
    assert of_fields("a\x00b", "x\x1b", "six")[1] == {
        "sets": "problem.name", "model": "problem.name", "length": "problem.integer",
    }  # fmt: skip
    assert of_fields("a" * 2000, "", "-5")[1] == {"sets": "problem.name", "length": "problem.integer"}


def test_an_address_holds_text_only() -> None:
    request = Request(("a b", "hf:x/y&z"), "demo", 64)
    with_junk = [
        ("data", "a b"),
        ("data", "\x00"),
        ("data", "hf:x/y&z"),
        ("model", "demo"),
        ("length", "64"),
        ("x", "y"),
    ]
    assert of_query(with_junk) == request
    from urllib.parse import parse_qsl

    assert of_query(parse_qsl(request.query())) == request
    assert of_query([("length", "1e9"), ("model", "\n")]) == Request()


def test_a_config_gives_its_sets_by_name() -> None:
    assert of_config({"data": "a", "model": "demo"}) == Request(("a",), "demo")
    config = {"data": {"train": ["a", {"set": "b", "weight": 2}, 5], "max_length": 64}, "model": {"ref": "demo"}}
    assert of_config(config) == Request(("a", "{set: b, weight: 2}"), "demo", 64)
    assert of_config(Request(("a",), "demo", 64).config()) == Request(("a",), "demo", 64)
    assert of_config({}) == Request() == of_config(Request().config())


MAPPING = "{set: a.jsonl, columns: {prompt: question, response: answer}, split: test}"


def test_a_set_may_be_a_mapping() -> None:
    request, problems = of_fields(f"{MAPPING}\nb", "", "")
    assert request == Request((MAPPING, "b")) and problems == {}
    assert request.check()[-3:] == ["--", MAPPING, "b"]
    entry = {"set": "a.jsonl", "columns": {"prompt": "question", "response": "answer"}, "split": "test"}
    assert Request((MAPPING, "x=y")).check()[-1] == f"data.train={json.dumps([entry, 'x=y'])}"
    assert request.config()["data"]["train"] == [entry, "b"] and of_config(request.config()) == request
    from urllib.parse import parse_qsl

    assert of_query(parse_qsl(request.query())) == request


@pytest.mark.parametrize(
    "line",
    ["{set: a", "{columns: {a: b}}", "{set: 5}", "{set: a, columns: [x]}", "{set: a, x: &b c, y: *b}", "{set: 2024-99-99}",
     "{set: a, columns: {b: {c: d}}}", "{set: !!python/name:os.system x}", "{set: a, 5: b}"],
)  # fmt: skip
def test_what_is_in_braces_and_no_set_is_told(line: str) -> None:
    assert of_fields(line, "", "")[1] == {"sets": "problem.set"} and of_query([("data", line)]) == Request()


def test_settings_are_settings_and_nothing_else() -> None:
    request, problems = of_fields("a", "demo", "", "data.learn=everything\n\n model.template=chatml ")
    assert problems == {} and request.settings == ("data.learn=everything", "model.template=chatml")
    assert request.check()[-4:] == ["--", "a", "data.learn=everything", "model.template=chatml"]
    assert request.config() == {
        "data": {"train": ["a"], "learn": "everything"}, "model": {"ref": "demo", "template": "chatml"},
    }  # fmt: skip
    assert of_config(request.config()).settings == ('data.learn="everything"', 'model.template="chatml"')
    for wrong in (
        "--fix=x",
        "data.learn",
        "../a=b",
        "data..x=1",
        ".x=1",
        "a b=c",
        "{set: a}=b",
        "x=\x00",
        "x={a: &b c, d: *b}",
    ):
        assert of_fields("a", "", "", wrong)[1] == {"settings": "problem.setting"}, wrong
    clash = Request(("a",), settings=("data.learn=x", "data.learn.y=1", "data.max_length.z=1"))
    assert clash.config()["data"]["train"] == ["a"]


def test_an_address_cannot_make_a_model_run_its_code() -> None:
    pairs = [
        ("setting", s) for s in ("data.learn=everything", "model.trust_remote_code=true", "model=x", "model.template=a")
    ]
    assert of_query(pairs).settings == ("data.learn=everything", "model.template=a")


# -- the job -----------------------------------------------------------------------------------------------------------


def test_a_clean_set_and_one_with_errors_are_both_answers(found: Path) -> None:
    clean = checked("lantern_bay")
    assert clean.sets[0]["rows"] == 214 and clean.groups == () and "steps" in clean.head["steps"]
    report = checked(str(found))
    assert report.count("error") == 5 and report.count("warning") > 0
    group = report.groups[0]
    assert (group.check, group.title) == ("unreadable", "rows that cannot be read") and group.count("") == 5
    assert report.row_of(group.kept[0]) == (0, 4)


def test_a_command_that_fails_is_told_with_its_hint_and_without_its_progress(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        checked("no_such_set")
    assert caught.value.message.startswith("no data set or file 'no_such_set'") and "lantern_bay" in str(
        caught.value.hint
    )
    broken = tmp_path / "broken.json"
    broken.write_text('[{"instruction": "a", "output": "b"},')
    with pytest.raises(UserError, match=r"broken\.json:1: not valid JSON"):
        checked(str(broken))
    assert split_message("checking …\n  done\nerror: bad\nworse\nhint: mend it") == ("bad\nworse", "mend it")


def test_the_last_line_is_handed_on_and_cancelling_ends_the_process(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('one\\ntwo', file=sys.stderr, flush=True); time.sleep(600)"
    )
    lines: list[str] = []

    async def go() -> None:
        job = Job((sys.executable, "-c", code), ())

        def said(line: str) -> None:
            lines.append(line)
            job.cancel()

        await job.run(lambda path: None, said=said)

    with pytest.raises(Cancelled):
        asyncio.run(go())
    assert lines[-1] == "two"
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for_end(pid)


def test_a_process_ends_with_the_waiting(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    async def go() -> None:
        task = asyncio.create_task(Job((sys.executable, "-c", code), ()).run(lambda path: None))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    wait_for_end(int((tmp_path / "pid").read_text()))


def wait_for_end(pid: int) -> None:
    import psutil

    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


def test_an_end_without_a_message_or_with_nonsense_is_told() -> None:
    def outcome(code: str, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            asyncio.run(Job((sys.executable, "-c", code), ()).run(read_report, **options))
        return str(caught.value)

    assert "ended with code 2" in outcome("raise SystemExit(2)", answers=(0, 2))
    assert "ended by signal 9" in outcome("import os; os.kill(os.getpid(), 9)")
    assert "did not answer as expected" in outcome("print('hello')")
    assert "no end" in outcome("""print('{\\n "findings": [')""")


def test_columns_and_settings_reach_the_command(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"q": "Why?", "a": "So."}) + "\n")
    request = Request(
        (f"{{set: {path}, columns: {{prompt: q, response: a}}}}",), settings=("train.epochs=1", "data.eval_share=0")
    )
    report = asyncio.run(Job(COMMAND, request.check()).run(read_report, answers=(0, 2)))
    assert report.shape["rows"] == 1 and report.sets[0]["format"] == "alpaca"
    assert report.training == {
        "stage": "sft", "rows": 1, "epochs": 1.0, "batch": 16, "max_steps": 0, "held_out": 0, "steps": 1, "few": True, "none": "",
        "tokens": "", "about": False,
    }  # fmt: skip
    assert report.head["steps"] == "1 row × 1 epoch / 16 = 1 step: probably too few to see a change"


# -- reading the answers -----------------------------------------------------------------------------------------------


def finding(**values: Any) -> str:
    return json.dumps({"check": "a", "severity": "warning", "message": "m", "part": "train", "row": 0, **values})


def report_of(*findings: str, **head: Any) -> Report:
    text = json.dumps({"ok": True, **head}, indent=1)[:-2] + ',\n "findings": [\n' + ",\n".join(findings) + "\n ]\n}\n"
    return parse(text.splitlines(keepends=True))


def test_of_many_findings_the_first_are_kept_and_all_are_counted() -> None:
    report = report_of(*(finding(row=n) for n in range(KEEP + 50)), finding(severity="error", row=7))
    (group,) = report.groups
    assert report.count("warning") == KEEP + 50 and len(group.of("warning")) == KEEP
    assert group.of("")[0].severity == "error", "the gravest first"


def test_findings_are_read_with_care() -> None:
    report = report_of(
        finding(severity="x", row="7", message=None, excerpt=["<b>"]), checks={"a": "?"}, sets=[1], tokens=5
    )
    (group,) = report.groups
    assert (group.title, group.kept[0].severity, group.kept[0].row, group.kept[0].message) == ("a", "info", -1, "")
    assert report.sets == [] and report.tokens == {} and report.shape == {} and report.row_of(group.kept[0]) is None


def test_the_row_of_a_finding_is_found_among_several_sets() -> None:
    sets = [{"name": n, "part": p, "rows": r} for n, p, r in (("a", "train", 3), ("b", "train", 2), ("c", "eval", 9))]
    report = report_of(
        finding(row=2), finding(row=3), finding(row=5), finding(row=1, part="eval"), finding(row=-1), sets=sets
    )
    places = [report.row_of(f) for f in report.groups[0].kept]
    assert places == [(0, 3), (1, 1), None, None, None]


def test_charts_hold_every_count_and_are_escaped() -> None:
    bins = histogram.bins_of([[0, 10, 3], [10, 20, 1], ["x", 1, 2], [1, 2]])
    assert bins == [(0, 10, 3), (10, 20, 1)]
    drawn = histogram.svg(bins, 'a"<b>')
    assert drawn.count("<rect") == 2 and "0–9" in drawn and 'aria-label="a&quot;&lt;b&gt;"' in drawn
    turns = histogram.bins_of_counts({str(n): 1 for n in range(1, 30)} | {"x": 1})
    assert sum(n for _, _, n in turns) == 29 and histogram.name(turns[-1]) == "17–29"


def test_rows_are_escaped_and_may_load_and_run_nothing(found: Path) -> None:
    answer = asyncio.run(Job(COMMAND, Request().show(str(found), 3, 2)).run(data_rows.read_rows))
    page = data_rows.document(answer, Texts("en"))
    assert "&lt;script&gt;window.hit = 1" in page and "<script" not in page and "<img" not in page
    assert "default-src 'none'" in page and "should be text" in page


def test_learned_tokens_and_hidden_characters_are_marked() -> None:
    def segment(text: str, **more: Any) -> dict[str, Any]:
        return {"text": text, "tokens": [0], "ids": [5], "learned": False, "special": False, **more}

    pieces = [segment("<|end|>", special=True), segment("yes\u202e\n", learned=True), segment("x" * 30_000)]
    side = {"label": "", "ids": [1, 2, 3], "mask": [0, 1, 0], "segments": pieces, "dropped_turns": 2}
    page = data_rows.document({"model": "demo", "rows": [{"origin": "f:1", "sides": [side]}]}, Texts("en"))
    assert '<span class="t s" title="#0 · id 5">&lt;|end|&gt;</span>' in page
    assert '<span class="t l" title="#0 · id 5">yes‹U+202E›<span class="n">⏎</span>' in page
    assert "3 tokens, 1 learned (33%)" in page and "fit: 2" in page and "and 10,000 more characters" in page


def test_every_check_has_a_heading_in_both_languages() -> None:
    for room in ("tunesmith.data.doctor.checks", "tunesmith.render.checks"):
        for name in names(room):
            title = load(room, name).Check.title
            assert table("en")[f"check.{name}"].lower() == title.lower() and table("zh")[f"check.{name}"]


def mends_of(module: str) -> set[str]:
    """The sentences that a check gives its findings as what to do, out of its source."""
    source = importlib.util.find_spec(module)
    assert source is not None and source.origin is not None
    found = set()
    for node in ast.walk(ast.parse(Path(source.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.BoolOp) and isinstance(node.values[-1], ast.Constant):  # error.hint or "…"
            found.add(node.values[-1].value)
        if isinstance(node, ast.Call) and ast.unparse(node.func).lower().endswith("finding") and len(node.args) > 2:
            found.add(node.args[2].value if isinstance(node.args[2], ast.Constant) else None)
    return {text for text in found if isinstance(text, str)}


def test_every_standard_mend_is_translated_and_none_is_out_of_date() -> None:
    rooms = ("tunesmith.data.doctor.checks", "tunesmith.render.checks")
    said: dict[str, set[str]] = {name: mends_of(f"{room}.{name}") for room in rooms for name in names(room)}
    said["unreadable"] |= {"mend the file"}  # of a file that cannot be read to its end (doctor.examine)
    assert sum(map(bool, said.values())) > 20, "they are found; a few checks only have sentences made for the row"
    for check, mends in said.items():
        known = {text for key, text in table("en").items() if re.fullmatch(rf"mend\.{check}(_[a-z]+)?", key)}
        assert mends == known, check
        for mend in mends:
            assert mend_in_words(check, mend, Texts("en")) == mend
            assert re.search(r"[\u4e00-\u9fff]", mend_in_words(check, mend, Texts("zh"))), mend
    assert mend_in_words("empty", "something else", Texts("zh")) == "something else"


@pytest.mark.parametrize(
    "row",
    [{"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b"}, {"text": "a"}, {"prompt": "a"},
     {"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "chosen": "b", "rejected": "c"},
     {"messages": [{"role": "user", "content": "a"}]}, {"conversations": [{"from": "human", "value": "a"}]},
     {"instruction": "a", "chosen": "b", "rejected": "c"}, {"question": "a", "answer": "b"}],
)  # fmt: skip
def test_reasons_of_formats_are_translated(row: dict[str, Any]) -> None:
    _, reason = detect([("f:1", row)], FieldMap())
    assert reason_in_words(reason, Texts("en")) == reason
    words = reason_in_words(reason, Texts("zh"))
    assert not re.search("[A-Za-z]{2,}", re.sub(r"'[^']*'|true|false", "", words)), words


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Server(tmp_path_factory.mktemp("home"), command=COMMAND) as server:
        yield server


@pytest.mark.page
def test_checking_a_set_with_findings(tab: Tab, server: Server, found: Path) -> None:
    page = tab.page
    page.goto(f"{server.address}data")
    page.get_by_role("button", name="Check").click()
    page.get_by_text("Please fill this in.").wait_for()
    page.get_by_label("Data sets").fill(str(found))
    page.get_by_role("button", name="Check").click()
    page.get_by_text("Errors to mend before training: 5.").wait_for(timeout=60_000)
    assert page.get_by_role("img", name="Turns per row: 2: 3").count() == 1
    unreadable = page.locator(".finding-group", has_text="Rows that cannot be read")
    assert unreadable.locator(".finding").count() == 3
    unreadable.get_by_role("button", name="Show all 5").click()
    page.wait_for_function("document.querySelectorAll('.finding-error').length === 5")
    page.get_by_role("button", name="Warnings", exact=False).first.click()
    page.wait_for_function("document.querySelectorAll('.finding-error').length === 0")
    assert page.locator(".filter[aria-pressed=true]").inner_text().startswith("Warnings")
    page.get_by_text("HTML tags such as <b>").first.wait_for()

    page.get_by_role("button", name=f"Show the row: {found}:3").first.click()
    rows = page.frame_locator(".rows-frame")
    rows.get_by_text("<script>window.hit = 1</script>").wait_for(timeout=60_000)
    assert page.evaluate("window.hit") is None
    assert page.locator(".rows-frame").get_attribute("sandbox") == "allow-same-origin"
    page.get_by_role("heading", name="Rows 3 to 7").wait_for()

    page.reload()
    page.wait_for_function(f"document.querySelector('textarea').value === {json.dumps(str(found))}")
    assert tab.outside() == set() and tab.errors == []


@pytest.mark.page
def test_failures_are_shown_whole_and_an_address_runs_nothing(tab: Tab, server: Server) -> None:
    page = tab.page
    page.goto(f"{server.address}data?data=no_such_set")
    page.wait_for_function("document.querySelector('textarea')?.value === 'no_such_set'")
    page.wait_for_timeout(500)
    assert page.locator(".busy, .banner-failed").count() == 0
    page.get_by_role("button", name="Check").click()
    page.get_by_text("The data cannot be checked").wait_for(timeout=60_000)
    page.get_by_text("no data set or file 'no_such_set'").wait_for()
    page.get_by_text("known: lantern_bay").wait_for()
    assert tab.errors == []


@pytest.mark.page
def test_from_a_new_run_to_its_data_and_back(tab: Tab, server: Server) -> None:
    page = tab.page
    page.goto(f"{server.address}new")
    page.locator("[id='field-model.ref']").wait_for(timeout=60_000)
    tab.field("model.ref").fill("my-model")
    tab.field("data.train").fill("lantern_bay")
    page.locator("a[href='/data?data=lantern_bay&model=my-model']").click()
    page.wait_for_function("document.querySelector('textarea')?.value === 'lantern_bay'")
    assert page.get_by_label("Model (optional)").input_value() == "my-model"
    page.get_by_label("Model (optional)").fill("other")
    page.locator("a[href='/new?data=lantern_bay&model=other']").click()
    page.wait_for_function("document.querySelector('[id=\"field-model.ref\"]')?.value === 'other'")
    page.get_by_text("ref: other").wait_for()
    assert page.url == f"{server.address}new" and tab.errors == []


@pytest.mark.page
def test_a_check_is_cancelled_and_speaks_chinese(browser: Any, server: Server, tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    waits = tmp_path / "never.jsonl"  # opening it waits for a writer that never comes
    os.mkfifo(waits)
    phone = Tab(browser, locale="zh-CN", viewport={"width": 390, "height": 800})
    page = phone.page
    page.goto(f"{server.address}data?data={waits}")
    page.get_by_role("button", name="检查").click()
    page.get_by_role("button", name="取消").click()
    page.get_by_text("已取消。").wait_for(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.get_by_role("button", name="English").is_visible(), "the other language is in reach on a phone"
    assert phone.errors == []
    phone.context.close()


@pytest.mark.page
def test_columns_are_told_in_a_field_and_chinese_is_spoken(browser: Any, server: Server, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    rows = [{"q": "Why?", "a": "So."}, {"q": "When?", "a": "<b>Now</b>"}, {"q": "Why?", "a": "So."}]
    odd.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chinese = Tab(browser, locale="zh-CN")
    page = chinese.page
    page.goto(f"{server.address}data?data={odd}")
    page.get_by_role("button", name="检查").click()
    hint = page.locator(".hint-lines")
    hint.wait_for(timeout=60_000)
    assert hint.evaluate("e => getComputedStyle(e).whiteSpace").startswith("pre-line") and "\n" in hint.text_content()
    page.get_by_text("保留英文原文").wait_for()

    page.get_by_label("数据集").fill(f"{{set: {odd}, columns: {{prompt: q, response: a}}")
    page.get_by_role("button", name="检查").click()
    page.get_by_text("花括号中的一行必须是含有 set 的映射").wait_for()
    page.get_by_label("数据集").fill(f"{{set: {odd}, columns: {{prompt: q, response: a}}}}")
    page.get_by_label("更多设置").fill("--fix=x")
    page.get_by_role("button", name="检查").click()
    page.get_by_text("这里要填 key=value").wait_for()
    page.get_by_label("更多设置").fill("train.epochs=5\ndata.eval_share=0")
    page.get_by_role("button", name="检查").click()
    page.get_by_text("5 步（每轮 3 行 ÷ 批大小 16，向上取整，× 5 轮）；可能太少，看不出变化").wait_for(timeout=60_000)
    page.get_by_text("判断依据：含有键 'instruction' 和 'output'").wait_for()
    page.get_by_text("从网页中提取文本时去掉标签").wait_for()
    page.get_by_text("只保留一条，除非有意让它多算几次").wait_for()
    assert page.locator(".as-said").count() == 1

    page.get_by_role("button", name=f"查看这一行: {odd}:2").click()  # read with the columns that were told
    page.frame_locator(".rows-frame").get_by_text("When?").wait_for(timeout=60_000)
    assert page.locator(".finding").count() > 0, "the findings are of the same set and stay"
    assert chinese.errors == []
    chinese.context.close()


@pytest.mark.page
def test_results_belong_to_what_was_asked(tab: Tab, server: Server, found: Path) -> None:
    page = tab.page
    page.goto(f"{server.address}data?data={found}")
    page.get_by_role("button", name="Check").click()
    page.get_by_text("Errors to mend before training: 5.").wait_for(timeout=60_000)
    assert page.locator(".banner-old").count() == 0
    page.get_by_label("Longest conversation").fill("x")
    page.get_by_text("these results belong to").wait_for()
    assert str(found) in page.locator(".banner-old code").inner_text()
    page.get_by_label("Longest conversation").fill("")
    page.locator(".banner-old").wait_for(state="detached")
    page.get_by_label("Data sets").fill("lantern_bay")
    page.locator(".banner-old").wait_for()
    page.get_by_role("button", name="Show rows").click()
    page.get_by_role("heading", name="Rows 1 to 5").wait_for(timeout=60_000)
    assert page.locator(".finding, .verdict, .banner-old").count() == 0, "the findings were of another set"

    page.get_by_label("Data sets").fill("no_such_set")
    page.get_by_role("button", name="Check").click()
    page.get_by_text("The data cannot be checked").wait_for(timeout=60_000)
    assert page.locator(".rows-card").count() == 0
    page.get_by_label("Data sets").fill("lantern_bay")
    page.get_by_text("The data cannot be checked").wait_for(state="detached")
    assert tab.errors == []
