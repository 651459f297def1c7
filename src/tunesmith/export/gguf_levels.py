"""Every level a GGUF can be written at: its number in the file, the type most tensors get, what it costs and when to use it.

A level is llama.cpp's "file type": not one type for all, but a mix (``gguf_mix``). Knows figures; reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """``bits``: per weight over a whole 8B Llama (llama.cpp, tools/quantize/README.md; a small model with a large vocabulary needs more).

    ``file_type``: ``general.file_type`` in the file (``enum llama_ftype``). ``usual_kl``: mean KL divergence (nats) to the 16-bit
    model, with an importance matrix where one is usual, that a model of the size people fine-tune stays below: what SmolLM2-135M, a
    small one, loses on general text (benchmarks/results/quality.md; levels between those measured are estimated), times 1.5 to 2.5.
    """

    name: str
    file_type: int
    type: str
    bits: float
    usual_kl: float
    use: str

    @property
    def direct(self) -> bool:
        """Whether llama.cpp's converter writes it itself, in one pass: 8 bits or more for every weight."""
        return self.name in ("f32", "f16", "bf16", "q8_0")


_LEVELS = (
    Level("f32", 0, "F32", 32.0, 1e-3, "the numbers of a model trained in fp32; for tests"),
    Level("f16", 1, "F16", 16.0, 1e-3, "nothing is lost; what everything else is compared with"),
    Level(
        "bf16",
        32,
        "BF16",
        16.0,
        0.02,
        "a base in bf16 bit for bit; too coarse for small changes by training, for which f16 is better",
    ),
    Level("q8_0", 7, "Q8_0", 8.5, 0.02, "half of f16, no difference anyone notices"),
    Level("q6_k", 18, "Q6_K", 6.56, 0.03, "as good as q8_0 for most uses"),
    Level("q5_1", 9, "Q5_1", 6.0, 0.1, "older than q5_k; for widths that are no multiple of 256"),
    Level("q5_k_m", 17, "Q5_K", 5.70, 0.04, "small loss; when there is room for more than 4 bits"),
    Level("q5_k_s", 16, "Q5_K", 5.57, 0.04, "a little smaller than q5_k_m"),
    Level("q5_0", 8, "Q5_0", 5.5, 0.15, "older than q5_k; for widths that are no multiple of 256"),
    Level("q4_1", 3, "Q4_1", 5.0, 0.3, "older than q4_k; for widths that are no multiple of 256"),
    Level("q4_k_m", 15, "Q4_K", 4.89, 0.1, "the usual choice: a third of f16, little loss"),
    Level("iq4_nl", 25, "IQ4_NL", 4.68, 0.3, "4 bits in blocks of 32: any width, fast on ARM"),
    Level("q4_k_s", 14, "Q4_K", 4.67, 0.12, "a little smaller than q4_k_m"),
    Level("q4_0", 2, "Q4_0", 4.5, 0.45, "the oldest 4 bits; fastest on some CPUs"),
    Level("iq4_xs", 30, "IQ4_XS", 4.46, 0.3, "smallest 4 bits; slower than q4_k on CPUs"),
    Level("q3_k_l", 13, "Q3_K", 4.30, 0.25, "between 3 and 4 bits"),
    Level("q3_k_m", 12, "Q3_K", 4.00, 0.3, "3 bits for models that do not fit in 4"),
    Level("iq3_m", 27, "IQ3_S", 3.76, 0.4, "better than q3_k_s of the same size, slower on CPUs"),
    Level("iq3_s", 26, "IQ3_S", 3.66, 0.5, "as iq3_m, without its larger tensors"),
    Level("q3_k_s", 11, "Q3_K", 3.64, 0.7, "smallest 3 bits of the K kind"),
    Level("iq3_xs", 22, "IQ3_S", 3.50, 0.5, "needs an importance matrix"),
    Level("iq3_xxs", 23, "IQ3_XXS", 3.25, 0.6, "needs an importance matrix"),
    Level("q2_k", 10, "Q2_K", 3.16, 0.7, "clear loss; only for large models"),
    Level("q2_k_s", 21, "Q2_K", 2.97, 0.9, "needs an importance matrix; only for large models"),
    Level("iq2_m", 29, "IQ2_S", 2.93, 1.0, "needs an importance matrix; only for large models"),
    Level("iq2_s", 28, "IQ2_XS", 2.74, 1.2, "needs an importance matrix; only for large models"),
    Level("iq2_xs", 20, "IQ2_XS", 2.59, 1.4, "needs an importance matrix; only for the largest models"),
    Level("iq2_xxs", 19, "IQ2_XXS", 2.38, 1.6, "needs an importance matrix; only for the largest models"),
    Level("iq1_m", 31, "IQ1_M", 2.15, 4.0, "needs an importance matrix; an experiment"),
    Level("iq1_s", 24, "IQ1_S", 2.00, 4.0, "needs an importance matrix; an experiment"),
)
LEVELS: dict[str, Level] = {level.name: level for level in _LEVELS}
"""Name -> level, finest first."""
