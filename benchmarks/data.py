"""Tokenize, mask and pack short conversations: Tunesmith beside ``datasets.map`` + ``apply_chat_template`` row by row.

    python benchmarks/data.py [--rows 100000] [--repeats 2]

Made-up conversations of 1 to 3 turns in English and Chinese, SmolLM2's tokenizer. Both sides begin with rows in memory and end
with ids and masks on disk; those must be identical. Runs alternate, so that other load on the machine meets both sides. The
other side gets its mask the way a person would ask for it: SmolLM2's template with ``{% generation %}`` around the
answers and ``return_assistant_tokens_mask=True``; a run that tokenizes only, without any mask, is measured too.
Raw figures: benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np

from tunesmith.config.home import home
from tunesmith.config.progress import SILENT
from tunesmith.data.example import Chat, Message
from tunesmith.data.identity import identity
from tunesmith.models.local import localize
from tunesmith.models.open import open_tokenizer
from tunesmith.render.batch import BatchRenderer
from tunesmith.render.conversation import Renderer
from tunesmith.render.identity import identity_of_renderer
from tunesmith.render.packing import pack
from tunesmith.render.positions import mask_of
from tunesmith.render.workers import BATCH, batched
from tunesmith.stages import sft
from tunesmith.verbs.rows import encode_rows

ENGLISH = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
    "or",
    "had",
    "an",
    "they",
    "which",
    "one",
    "you",
    "were",
    "all",
    "her",
    "she",
    "there",
    "would",
    "their",
    "we",
    "him",
    "been",
    "has",
    "when",
    "who",
    "will",
    "no",
    "more",
    "if",
    "out",
    "so",
    "up",
    "said",
    "what",
    "its",
    "about",
    "than",
    "into",
    "them",
    "can",
    "only",
    "other",
    "time",
    "new",
    "some",
    "could",
    "these",
    "two",
    "may",
    "first",
    "then",
    "do",
    "any",
    "like",
    "my",
    "now",
    "over",
    "such",
    "our",
    "man",
    "me",
    "even",
    "most",
    "made",
    "after",
    "also",
    "did",
    "many",
    "off",
    "before",
    "must",
    "well",
    "back",
    "through",
    "years",
    "much",
    "where",
    "your",
    "way",
    "down",
    "should",
    "because",
    "long",
    "each",
    "just",
    "state",
    "those",
    "people",
    "too",
    "mister",
    "how",
    "little",
    "good",
    "world",
    "make",
    "very",
    "year",
    "still",
    "see",
    "own",
    "work",
    "men",
    "day",
    "get",
    "here",
    "old",
    "life",
    "both",
    "between",
    "being",
    "under",
    "three",
    "never",
    "know",
    "same",
    "last",
    "another",
    "while",
    "us",
    "might",
    "great",
    "go",
    "come",
    "since",
    "against",
    "right",
    "came",
    "take",
    "used",
    "himself",
    "few",
    "house",
    "American",
    "use",
    "place",
    "during",
    "high",
    "without",
    "again",
    "home",
    "around",
    "small",
    "however",
    "found",
    "temperature",
    "algorithm",
    "photosynthesis",
    "recipe",
    "electricity",
    "grammar",
    "database",
    "vitamin",
    "negotiation",
    "sculpture",
    "derivative",
    "Python",
    "function",
]
CHINESE = [
    "的",
    "我们",
    "一个",
    "可以",
    "因为",
    "所以",
    "学习",
    "模型",
    "数据",
    "训练",
    "今天",
    "天气",
    "怎么样",
    "请",
    "解释",
    "一下",
    "什么",
    "是",
    "机器",
    "语言",
    "世界",
    "历史",
    "科学",
    "文化",
    "方法",
    "问题",
    "答案",
    "首先",
    "其次",
    "最后",
    "水",
    "温度",
    "健康",
    "饮食",
    "运动",
    "建议",
    "时间",
    "城市",
    "北京",
    "上海",
    "电影",
    "音乐",
    "老师",
    "学生",
    "公司",
    "经济",
    "发展",
    "技术",
    "代码",
    "函数",
    "变量",
    "例如",
    "如果",
    "但是",
    "而且",
    "不同",
    "重要",
    "需要",
    "使用",
    "进行",
]


def conversations(n: int) -> list[Chat]:
    """The same ones each time; common words are more common, a third is Chinese."""
    draw = random.Random(20)
    weights = [1 / (rank + 3) for rank in range(len(ENGLISH))]

    def english(low: int, high: int) -> str:
        words = draw.choices(ENGLISH, weights, k=draw.randint(low, high))
        if draw.random() < 0.2:
            words.insert(len(words) // 2, f"{draw.randint(1, 9999)},")
        return " ".join(words).capitalize() + draw.choice([".", "?", "!", ".\n\n- " + words[0]])

    def chinese(low: int, high: int) -> str:
        return "".join(draw.choices(CHINESE, k=draw.randint(low, high))) + draw.choice("。？！")

    chats = []
    for i in range(n):
        say = chinese if draw.random() < 0.33 else english
        turns: list[Message] = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            turns += [Message("user", say(4, 20)), Message("assistant", say(8, 45))]
        chats.append(Chat(tuple(turns), origin=f"made:{i + 1}"))
    return chats


def with_generation(template: str) -> str:
    """SmolLM2's template with the answers marked; it renders the same text."""
    before = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    assert before in template, "SmolLM2's template is not as it was"
    return template.replace(
        before,
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}",
    )


def by_rows(tokenizer: Any, template: str, data: Any, processes: int, folder: Path, *, mask: bool) -> Any:
    """The usual way: one row at a time."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer.apply_chat_template(
            row["messages"], chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=mask
        )
        return {"ids": made["input_ids"], "mask": made["assistant_masks"]} if mask else {"ids": made["input_ids"]}

    return data.map(
        one, remove_columns=["messages"], num_proc=processes if processes > 1 else None,
        cache_file_name=str(folder / "rows.arrow"), load_from_cache_file=False,
    )  # fmt: skip


def phases(batches: BatchRenderer, chats: list[Chat]) -> dict[str, float]:
    """Seconds of each part alone, one after the other on one thread (the tokenizer uses all cores)."""
    seconds = dict.fromkeys(("rendering", "finding spans", "encoding", "masking"), 0.0)
    batches.encode(chats[:BATCH])  # the shapes are known
    for batch in batched(chats):
        begin = time.perf_counter()
        for chat in batch:
            assert batches._direct is not None and batches._direct.text(chat.as_dicts())
        seconds["rendering"] += (rendered := time.perf_counter() - begin)
        begin = time.perf_counter()
        planned = batches._plan(batch)
        seconds["finding spans"] += time.perf_counter() - begin - rendered
        begin = time.perf_counter()
        located = list(batches._located(planned))
        seconds["encoding"] += time.perf_counter() - begin
        begin = time.perf_counter()
        for part, tokens in located:
            mask_of(tokens, [p.text for p in part], [p.spans for p in part])
        seconds["masking"] += time.perf_counter() - begin
    return seconds


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--processes", type=int, nargs="+", default=[2, 1], help="of datasets.map")
    arguments = options.parse_args()
    import datasets

    datasets.disable_progress_bars()
    tokenizer = open_tokenizer(localize("demo").folder)
    chats = conversations(arguments.rows)
    renderer = Renderer(tokenizer, max_length=2048)
    stage = sft.build(sft.Config(), renderer)
    every_row = sft.build(sft.Config(), renderer)  # as before there were pieces
    every_row.batches._pieces = every_row.batches._direct = None
    template = with_generation(renderer.template)
    data = datasets.Dataset.from_list([{"messages": chat.as_dicts()} for chat in chats])
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TUNESMITH_HOME"] = scratch
        assert str(home()) == scratch

        def ours(key: str, stage: Any = stage) -> Any:
            full = {
                "data": hashlib.sha256(b"".join(map(identity, chats))).hexdigest(),
                "renderer": identity_of_renderer(renderer),
                "run": key,
            }
            return encode_rows(stage, chats, full, SILENT, count=len(chats))

        times: dict[str, list[float]] = {}
        load: list[float] = []

        def timed(name: str, work: Callable[[], Any]) -> Any:
            load.append(os.getloadavg()[0])
            begin = time.perf_counter()
            result = work()
            times.setdefault(name, []).append(time.perf_counter() - begin)
            print(f"{name:48} {times[name][-1]:8.2f} s  {len(chats) / times[name][-1]:9.0f} rows/s", flush=True)
            return result

        store = theirs = None
        for repeat in range(arguments.repeats):
            store = timed("tunesmith, cache cold", lambda repeat=repeat: ours(str(repeat)))
            bins = timed("tunesmith, packing", lambda: pack(store.lengths, 2048))  # noqa: B023
            timed("tunesmith, cache cold, no pieces", lambda repeat=repeat: ours(f"{repeat}, no pieces", every_row))
            timed("tunesmith, cache warm", lambda repeat=repeat: ours(str(repeat)))
            for processes in arguments.processes:
                for mask in (True, False):
                    name = f"datasets.map, num_proc={processes}{'' if mask else ', ids only'}"
                    with tempfile.TemporaryDirectory(dir=scratch) as folder:
                        made = timed(
                            name,
                            lambda p=processes, f=folder, m=mask: by_rows(
                                tokenizer, template, data, p, Path(f), mask=m
                            ),
                        )
                        if mask and theirs is None:
                            theirs = made.with_format("numpy")[:]
        assert store is not None and theirs is not None
        assert len(store) == len(chats) and not store.failures
        again = ours("0, no pieces", every_row)
        for row, (ids, mask) in enumerate(zip(theirs["ids"], theirs["mask"])):
            item = store[row]
            assert np.array_equal(item.ids, ids) and np.array_equal(item.mask, mask), f"row {row} differs"
            assert np.array_equal(item.ids, again[row].ids) and np.array_equal(item.mask, again[row].mask), f"row {row}"
        print(f"identical ids and masks in all {len(chats)} rows")
        parts = phases(BatchRenderer(renderer), chats[: 20 * BATCH])
        share = min(len(chats), 20 * BATCH)

    tokens = int(np.sum(store.lengths))
    fill = tokens / (len(bins) * 2048)
    middle = {name: statistics.median(values) for name, values in times.items()}
    cold = [a + b for a, b in zip(times["tunesmith, cache cold"], times["tunesmith, packing"])]
    ratios = {
        name: [round(theirs / own, 2) for theirs, own in zip(values, cold)]
        for name, values in times.items()
        if name.startswith("datasets")
    }
    print(f"{tokens} tokens, {tokens / len(chats):.0f} a row; packed into {len(bins)} bins of 2048, {fill:.1%} full")
    for name, seconds in parts.items():
        print(f"  {name:16} {seconds / share * 1e6:7.1f} us a row")
    for name, values in ratios.items():
        print(f"{name}: {min(values)} to {max(values)} times the time of encoding, masking and packing here")
    figures = {
        "rows": len(chats), "tokens": tokens, "fill": fill, "seconds": times, "median_seconds": middle, "ratio_cold": ratios,
        "microseconds_per_row": {name: seconds / share * 1e6 for name, seconds in parts.items()},
        "load_before_each": load, "cores": os.cpu_count(), "machine": platform.machine(),
        "versions": {name: version(name) for name in ("datasets", "tokenizers", "transformers", "numpy")},
    }  # fmt: skip
    out = Path(__file__).parent / "results" / "data.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
