"""Unified diffs and the Markdown tables inside them, as values: pure code that insight and lifecycle share."""
