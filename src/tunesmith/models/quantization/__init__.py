"""Quantized frozen bases: ``<kind>.py`` quantizes a 16-bit checkpoint while it is opened (``model.quantize``)."""
