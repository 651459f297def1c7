"""Run llama.cpp's official converter in a process of its own: ``python -P convert_process.py JOB.json``.

It is started by path and imports nothing of this package: the converter brings its own version of ``gguf``, and what it loads
dies with it. JOB.json holds ``converter`` (folder of convert_hf_to_gguf.py), ``model`` (staged folder), ``out``, ``type``, ``name``,
``metadata`` (key -> string, bool or id, written whatever the converter found) and ``pre`` (name of the pre-tokenizer for vocabularies
whose hash the converter does not know; the caller proves it afterwards by comparing tokens); for ``outline`` and ``quantize`` see
``quantize_process.py``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    sys.path.insert(0, job["converter"])
    import convert_hf_to_gguf as converter  # type: ignore[import-not-found]  # sets the path to its own gguf
    import gguf
    from conversion.base import ModelBase, TextModel  # type: ignore[import-not-found]

    write_header, find_pre = gguf.GGUFWriter.write_header_to_file, TextModel.get_vocab_base_pre

    def write_header_with_metadata(self: Any, path: Any = None) -> None:
        for key, value in job["metadata"].items():
            self.remove_key(key)
            add = {bool: self.add_bool, int: self.add_uint32, str: self.add_string}[type(value)]
            add(key, value)
        write_header(self, path)

    def find_pre_or_given(self: Any, tokenizer: Any) -> str:
        try:
            return str(find_pre(self, tokenizer))
        except NotImplementedError:
            if job["pre"] is None:
                raise
            return str(job["pre"])

    gguf.GGUFWriter.write_header_to_file = write_header_with_metadata
    TextModel.get_vocab_base_pre = find_pre_or_given
    if job.get("outline") or job.get("quantize"):
        spec = importlib.util.spec_from_file_location("q", Path(__file__).with_name("quantize_process.py"))
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(process := importlib.util.module_from_spec(spec))
        process.install(gguf, ModelBase, job)
    sys.argv = [
        "convert_hf_to_gguf.py", job["model"], "--outfile", job["out"], "--outtype", job["type"], "--model-name", job["name"],
    ]  # fmt: skip
    converter.main()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
