"""Weights in, adapter files out: base models, decoders and adapters."""
