"""What a model reference points to: the grammar, the hubs, downloads that resume, and headers. It loads no weights.

``from tunesmith.hub.reference import parse`` and ``from tunesmith.hub.resolve import resolve_model`` are the doors.
"""
