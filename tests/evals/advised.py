"""Records and series as tests write them down."""

from tunekeeper.evals.advice import Measures
from tunekeeper.evals.compare import Outcome, Series
from tunekeeper.evals.signs import Record


def record(question, answer, line=1, **more):
    said = {"role": "assistant", "content": answer}
    messages = ({"role": "user", "content": question},)
    return Record(line=line, messages=messages, answer=said, value={"line": line}, **more)


def records(*pairs):
    return [record(question, answer, line) for line, (question, answer) in enumerate(pairs, start=1)]


def series(name, right, of=100, *, tokens=None, cost=None, errors=0, scores=None):
    """`right` of the items pass, the first ones; the last `errors` have no grade."""
    outcomes = [
        Outcome(
            key=f"line {n}",
            passed=None if n >= of - errors else n < right,
            score=scores[n] if scores else float(n < right),
            prompt_tokens=tokens,
            seconds=0.5,
            cost=cost,
            error="no answer" if n >= of - errors else "",
        )
        for n in range(of)
    ]
    return Series(name=name, model=f"model of {name}", outcomes=outcomes)


def measures(**values):
    return Measures(**{"method": "supervised", "n_training": 300, **values})
