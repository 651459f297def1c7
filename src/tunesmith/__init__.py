"""Tunesmith: from a data set to a fine-tuned model that answers in Ollama, with a proof at each hop.

The rooms of the house and who may import whom: ``docs/architecture.md``.
"""

__version__ = "0.1.0"
