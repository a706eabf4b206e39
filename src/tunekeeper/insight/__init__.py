"""What changed in the documents that models depend on: facts from diffs, the Diff Insight Report, the site."""
