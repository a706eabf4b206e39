"""Graders: a sample and an item in, a score out. `build` makes one from its JSON."""
