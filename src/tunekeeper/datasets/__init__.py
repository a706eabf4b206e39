"""Training data: a line of JSONL to an example, its faults, and the tokens that it becomes."""

from tunekeeper.datasets.report import Report
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.datasets.validate import check

__all__ = ["Report", "Tokenizer", "check"]
