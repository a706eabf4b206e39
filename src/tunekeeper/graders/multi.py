"""The multi grader: several graders look at a sample, a formula makes one score of theirs.

A part's fault is the whole's, whose score is then 0. The scores of the other parts are kept, so that what failed
is seen apart from what is bad.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from tunekeeper.graders.formula import Formula
from tunekeeper.graders.template import Ungradable
from tunekeeper.types import Grade, Json


def multi(parts: Mapping[str, Callable[[Json, Json], Grade]], formula: Formula) -> Callable[[Json, Json], Grade]:
    """Grades by all parts, then by the formula."""

    def score(sample: Json, item: Json) -> Grade:
        return combined({key: grade(sample, item) for key, grade in parts.items()}, formula)

    return score


def combined(grades: Mapping[str, Grade], formula: Formula) -> Grade:
    """One grade of the parts' grades; raises Ungradable where the formula has no value for good scores."""
    scores = {key: grade.score for key, grade in grades.items() if grade.is_valid}
    faults = tuple(fault for grade in grades.values() for fault in grade.faults)
    tokens: Counter[str] = Counter()
    for grade in grades.values():
        tokens.update(grade.token_usage)
    if not faults:
        try:
            score = formula(scores)
        except (ArithmeticError, ValueError) as error:
            shown = ", ".join(f"{key} = {value:g}" for key, value in scores.items())
            message = f"The formula has no value for {shown}: {error}."
            raise Ungradable("formula_parse_error", message, sub_scores=scores, token_usage=dict(tokens)) from error
    judges = {grade.sampled_model for grade in grades.values() if grade.sampled_model}
    return Grade(
        score=0.0 if faults else score,
        faults=faults,
        sub_scores=scores,
        token_usage=dict(tokens),
        sampled_model=judges.pop() if len(judges) == 1 else None,
        details={key: grade.details for key, grade in grades.items() if grade.details},
    )
