"""Merging an adapter into a base: ours beside peft's merge_and_unload and save, each in a process of its own.

    python benchmarks/merge.py [--billions 3] [--dtype bfloat16] [--rank 16] [--dora] [--tied] [--folder DIR]

The base is a synthetic Llama of so many billion parameters in shards of 5 GB; the adapter is on all linear layers. Time: from
the start of the process to its end, and of the merge alone (read, compute, write). Ours also hashes every file, waits until
all is on the disk and loads the folder back; peft's does not. Peak: most memory of the process at any time (``ru_maxrss``, with
the pages of mapped files, as the kernel counts it), and how much of it is there once everything is imported. Then every tensor
is compared bit for bit. Raw figures: benchmarks/results/merge.json, the table beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np

from tunesmith.config.files import write_json
from tunesmith.config.progress import SILENT
from tunesmith.export.shards import JOURNAL, write_shards
from tunesmith.export.tensor_files import ITEM_BYTES, PlannedTensor, read_model

RESULTS = Path(__file__).parent / "results"
OURS = """
import json, resource, sys, time
from pathlib import Path
import peft, torch, transformers
from tunesmith.export.targets import hf
from transformers import AutoModelForCausalLM, AutoTokenizer
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
base, adapter, out = map(Path, sys.argv[1:4])
began = time.monotonic()
hf.export(adapter, out, hf.Config(), base=base)
print(json.dumps({"seconds": time.monotonic() - began, "imported": imported * 1024}))
"""
PEFT = """
import json, resource, sys, time
import peft, torch, transformers
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
base, adapter, out = sys.argv[1:4]
began = time.monotonic()
model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="auto")
model.merge_and_unload().save_pretrained(out, max_shard_size="5GB")
AutoTokenizer.from_pretrained(base).save_pretrained(out)
print(json.dumps({"seconds": time.monotonic() - began, "imported": imported * 1024}))
"""
STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
VOCABULARY = 32_000


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--billions", type=float, default=3)
    options.add_argument("--dtype", choices=list(STORED), default="bfloat16")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--dora", action="store_true")
    options.add_argument("--tied", action="store_true")
    options.add_argument(
        "--folder", type=Path, help="where there is room for three times the model; removed afterwards"
    )
    given = options.parse_args()
    place = Path(tempfile.mkdtemp(prefix="merge-", dir=given.folder))
    try:
        config = shape_of(given.billions, given.tied)
        tensors = write_base(place / "base", config, given.dtype)
        write_adapter(place / "adapter", place / "base", tensors, given.rank, given.dora)
        size = sum(t.nbytes for t in tensors)
        print(f"base of {size / 1e9:.2f} GB in {place}", file=sys.stderr)
        found = {
            name: run(program, place / "base", place / "adapter", place / name)
            for name, program in (("ours", OURS), ("peft", PEFT))
        }
        different = compare(place / "ours", place / "peft")
        largest = max(t.nbytes for t in tensors)
        record = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "parameters": sum(size_of(t) for t in tensors),
            "bytes": size, "largest_tensor": largest, "dtype": given.dtype, "rank": given.rank, "dora": given.dora, "tied": given.tied,
            **found, "different": different, "tensors": len(tensors),
        }  # fmt: skip
        save(record)
        print(table(record))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def shape_of(billions: float, tied: bool) -> dict[str, Any]:
    """config.json of a Llama with about so many parameters: 12 d² a layer and the embeddings, layers = d / 100."""
    width = 256
    while parameters(width, tied) < billions * 1e9 * 0.97:
        width += 64
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": width,
        "intermediate_size": int(width * 2.75) // 16 * 16, "num_hidden_layers": max(2, width // 100), "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64, "head_dim": 64, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied, "hidden_act": "silu",
    }  # fmt: skip


def parameters(width: int, tied: bool) -> float:
    return max(2, width // 100) * (4 + 3 * 2.75) * width**2 + (1 if tied else 2) * VOCABULARY * width


def write_base(folder: Path, config: dict[str, Any], dtype: str) -> list[PlannedTensor]:
    """The base's folder. Its numbers are one random block, begun elsewhere for each tensor: no time goes into dice."""
    folder.mkdir()
    d, f = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, d)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
        shapes |= {f"{layer}mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")} | {
            f"{layer}mlp.down_proj.weight": (d, f)
        }
        shapes |= {f"{layer}{n}.weight": (d,) for n in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (d,)} | (
        {} if config["tie_word_embeddings"] else {"lm_head.weight": (VOCABULARY, d)}
    )
    dice = np.random.default_rng(0)
    block = block_of(dice, dtype)
    tensors = []
    for name, shape in shapes.items():
        start = int(dice.integers(0, len(block) // 16)) * 8
        whole = PlannedTensor(name, STORED[dtype], shape, lambda: ())
        tensors.append(
            PlannedTensor(name, STORED[dtype], shape, lambda n=whole.nbytes, s=start: pieces(block, s, n))  # type: ignore[misc]
        )
    write_shards(folder, tensors, int(5e9), SILENT)
    (folder / JOURNAL).unlink()
    write_json(folder / "config.json", {**config, "dtype": dtype})
    save_tokenizer(folder)
    return tensors


def block_of(dice: np.random.Generator, dtype: str) -> bytes:
    """8 MiB of numbers of either sign, about 0.01 to 0.03 large."""
    if dtype == "bfloat16":
        bits = dice.integers(0, 1 << 16, 4 << 20, dtype=np.uint16)
        return bytes((bits & 0x80FF | 0x3C00).tobytes())
    numbers = (dice.random(2 << 20, dtype=np.float32) - 0.5) * 0.06
    return bytes(numbers.astype(dtype).tobytes())


def pieces(block: bytes, start: int, count: int) -> Any:
    while count > 0:
        part = memoryview(block)[start : start + count]
        yield part
        count, start = count - len(part), 0


def write_adapter(folder: Path, base: Path, tensors: list[PlannedTensor], rank: int, dora: bool) -> None:
    """A LoRA in fp32 on all linear layers of the blocks."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    found = {}
    for tensor in tensors:
        if "_proj." not in tensor.name:
            continue
        out, width = tensor.shape
        module = f"base_model.model.{tensor.name.removesuffix('.weight')}"
        found[f"{module}.lora_A.weight"] = torch.randn(rank, width) * 0.05
        found[f"{module}.lora_B.weight"] = torch.randn(out, rank) * 0.05
        if dora:
            found[f"{module}.lora_magnitude_vector"] = torch.rand(out) + 0.5
    folder.mkdir()
    save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets,
        "base_model_name_or_path": str(base), "bias": "none", "inference_mode": True, "use_dora": dora,
    })  # fmt: skip


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(97))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.save_pretrained(folder)


def run(program: str, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Seconds and peak bytes of one process."""
    os.sync()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH")])
        )
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(base), str(adapter), str(out)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the process for {out.name} failed")
    told = json.loads(said.splitlines()[-1])
    return {
        "process_seconds": round(time.monotonic() - began, 2), "merge_seconds": round(told["seconds"], 2),
        "peak_bytes": usage.ru_maxrss * 1024, "imported_bytes": told["imported"],
    }  # fmt: skip


def compare(ours: Path, theirs: Path) -> list[str]:
    """The tensors whose bytes differ."""
    mine, other = read_model(ours), read_model(theirs)
    if mine.keys() != other.keys():
        return sorted(mine.keys() ^ other.keys())
    return [
        n for n, t in mine.items()
        if t.dtype != other[n].dtype or any(a != b for a, b in zip(t.chunks(), other[n].chunks(), strict=True))
    ]  # fmt: skip


def size_of(tensor: PlannedTensor) -> int:
    return tensor.nbytes // ITEM_BYTES[tensor.dtype]


def save(record: dict[str, Any]) -> None:
    """Beside earlier records; one of the same model is replaced."""
    path = RESULTS / "merge.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    same = ("parameters", "dtype", "rank", "dora", "tied")
    kept = [one for one in kept if any(one[key] != record[key] for key in same)] + [record]
    write_json(path, kept)
    text = "# Merging: ours beside peft's\n\n" + "\n".join(table(one) for one in kept)
    (RESULTS / "merge.md").write_text(text, encoding="utf-8")


def table(record: dict[str, Any]) -> str:
    ours, theirs = record["ours"], record["peft"]
    kind = ("DoRA" if record["dora"] else "LoRA") + f" of rank {record['rank']}" + (", tied" if record["tied"] else "")
    rows = [
        f"{record['parameters'] / 1e9:.2f} billion parameters, {record['dtype']}, {kind}; largest tensor {record['largest_tensor'] / 2**20:.0f} MiB ({record['machine']}).",
        "", "| | ours | peft | ratio |", "|---|---|---|---|",
        f"| merge | {ours['merge_seconds']:.1f} s | {theirs['merge_seconds']:.1f} s | {theirs['merge_seconds'] / ours['merge_seconds']:.2f} |",
        f"| whole process | {ours['process_seconds']:.1f} s | {theirs['process_seconds']:.1f} s | {theirs['process_seconds'] / ours['process_seconds']:.2f} |",
        f"| GB of base per second | {record['bytes'] / 1e9 / ours['merge_seconds']:.2f} | {record['bytes'] / 1e9 / theirs['merge_seconds']:.2f} | |",
        f"| peak memory | {ours['peak_bytes'] / 2**30:.2f} GiB | {theirs['peak_bytes'] / 2**30:.2f} GiB | {theirs['peak_bytes'] / ours['peak_bytes']:.1f} |",
        f"| of it after the imports | {ours['imported_bytes'] / 2**30:.2f} GiB | {theirs['imported_bytes'] / 2**30:.2f} GiB | |",
        "", f"Tensors that differ in any bit: {len(record['different'])} of {record['tensors']}.", "",
    ]  # fmt: skip
    return "\n".join(rows)


if __name__ == "__main__":
    main()
