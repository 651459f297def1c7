"""``tunesmith demo``: the whole way once, from a bundled data set to a model ready for Ollama."""

from __future__ import annotations

import sys
import time

from tunesmith.config.errors import UserError
from tunesmith.config.progress import Progress
from tunesmith.models.devices import peak_rss
from tunesmith.models.local import localize
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.compare import print_comparison, run_comparison
from tunesmith.verbs.console import duration
from tunesmith.verbs.deploy import deploy
from tunesmith.verbs.gguf import gguf
from tunesmith.verbs.reference import MergedReference
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.stopping import in_words
from tunesmith.verbs.targets import target_of
from tunesmith.verbs.train import create, execute

SETTINGS = (
    "model=demo",
    "data=lantern_bay",
    "data.eval=lantern_bay_heldout",
    "data.max_length=512",
    "method.rank=16",
    "train.epochs=1.5",
    "train.batch=8",
    "train.lr=1e-3",
    "output.name=demo",
)
NAME = "lantern-bay"


@in_words(lambda: "what was begun is kept with its run: tunesmith runs list")
def demo(progress: Progress, overrides: tuple[str, ...] = ()) -> RunFolder:
    """Get a model, fine-tune it, compare, merge, convert, prove, deploy; every step says where its result lies."""
    began = time.monotonic()
    config = load_config(None, [*SETTINGS, *overrides])

    _heading(1, "Getting SmolLM2-135M-Instruct")
    local = localize(config.model.ref, progress)
    _say(f"model: {local.folder} (from {local.source})")

    _heading(2, "Reading the bundled data set: who Marlow, the night watch of a lighthouse, is")
    run = create(config)
    _say(
        f"data: {', '.join(map(str, config.data.train))}, held out: {', '.join(map(str, config.data.eval))}; run folder: {run.path}"
    )

    _heading(3, "Fine-tuning LoRA adapters")
    execute(run, progress)
    if run.status().state != "finished":
        raise UserError(
            f"the demo was stopped at step {run.status().step}", hint=f"go on with: tunesmith runs resume {run.id}"
        )
    _say(f"adapter: {run.checkpoint()}")
    _say(f"loss curve: {run.artifacts / 'loss.png'}")

    _heading(4, "Comparing before and after on prompts it has not seen")
    comparison, folder = run_comparison(
        [f"run:{run.id}@base", f"run:{run.id}"], progress, limit=6, max_tokens=48, names=["before", "after"]
    )
    print_comparison(comparison)
    _say(f"report: {folder}/comparison.md")

    _heading(5, "Merging, converting to GGUF, and proving that it is the same model")
    target = target_of(f"run:{run.id}", progress)
    reference = MergedReference(target, progress)
    made = [gguf(target, progress, level=level, reference=reference) for level in ("f16", "q8_0")]
    for one in made:
        _say(
            f"{one.level.upper()}: {one.file} ({one.report.bytes / 1e6:.0f} MB), compared {one.report.checks['compared']}"
        )
    _say(f"Modelfile: {made[-1].modelfile} ({made[-1].template_reason})")

    _heading(6, "Ollama")
    # Served by force: one that was cut short with train.max_steps has not learned to end its answers, and the list says so.
    deployment = deploy(f"run:{run.id}", NAME, progress, proved=(made[-1], reference.evidence), force=True)
    if deployment.proof is not None:
        for line in deployment.proof.checklist():
            _say(line)
    if deployment.report is not None:
        _say(f"{deployment.report.question}\n  {NAME}: {deployment.report.answer}")
        _say(f"talk to it: ollama run {NAME}")
    else:
        _say(f"no Ollama server answers at {deployment.server}. With Ollama installed, one command makes the model:")
        print(f"    {deployment.command}")
    _say(f"talk to it here: tunesmith chat run:{run.id}")
    _say(f"done in {duration(time.monotonic() - began)}, peak memory {peak_rss() / 2**30:.1f} GiB")
    return run


def _heading(number: int, text: str) -> None:
    sys.stderr.flush()
    print(f"\n[{number}/6] {text}", flush=True)


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
