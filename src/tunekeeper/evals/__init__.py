"""Two runs over the same items: which is better, by how much, and whether there are enough items to tell."""

from tunekeeper.evals.compare import Comparison, CriterionResult, Outcome, Series, compare, item_key
from tunekeeper.evals.report import to_html, to_json, to_markdown

__all__ = [
    "Comparison",
    "CriterionResult",
    "Outcome",
    "Series",
    "compare",
    "item_key",
    "to_html",
    "to_json",
    "to_markdown",
]
