"""Tokens out: the embedded engine, and servers that speak the same API."""
