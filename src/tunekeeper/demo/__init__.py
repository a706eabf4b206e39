"""`tunekeeper demo`: the main job from nothing to an answer, on real data, through the official client."""

from tunekeeper.demo.road import run

__all__ = ["run"]
