"""A shorter prompt for the same quality: dates of five languages become ISO 8601, without the page of rules.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/shorter_prompts.py

The base gets the rules (and with few-shot eight examples); the tuned model gets the date, and nothing else. The dates
are written by babel from CLDR, the locale data that operating systems use. Years are drawn apart: every fourth year is
for the held-out items only, so none of their dates is in the training file in any language.
"""

import datetime
import random

import trial
from babel.dates import format_date, get_month_names

LOCALES = {"en_US": "English", "en_GB": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
FORMATS = ("full", "long", "medium")


def rules() -> str:
    """What one would write into a prompt: the form, and the months in every language."""
    months = "\n".join(
        f"{number:02d}: "
        + ", ".join(dict.fromkeys(get_month_names("wide", locale=locale)[number] for locale in LOCALES))
        for number in range(1, 13)
    )
    return (
        "You turn dates into ISO 8601. The rules:\n"
        "1. Answer with the date alone, in the form YYYY-MM-DD: no word before it, no full stop after it.\n"
        "2. The year has four digits, the month two, the day two. Write a zero before a single digit.\n"
        "3. Dates are English, German, French, Spanish or Italian. Leave out the day of the week.\n"
        "4. The day stands before or after the month, as the language has it; the year is the number of four digits.\n"
        f"5. These are the months, also when they are shortened:\n{months}"
    )


def dates(n: int, seed: int, *, held_out: bool) -> list[tuple[str, str]]:
    """Dates as written, each with its ISO form; no day twice."""
    draw = random.Random(seed)
    years = [year for year in range(1950, 2040) if (year % 4 == 1) == held_out]
    found: dict[str, str] = {}
    while len(found) < n:
        day = datetime.date(draw.choice(years), draw.randint(1, 12), draw.randint(1, 28))
        written = format_date(day, draw.choice(FORMATS), locale=draw.choice(list(LOCALES)))
        found.setdefault(day.isoformat(), written.replace("\u202f", " "))
    return [(written, iso) for iso, written in found.items()]


def main() -> None:
    arguments = trial.parser(__doc__, examples=160, items=60).parse_args()
    client = trial.connect()
    train = dates(arguments.examples, arguments.seed, held_out=False)
    held_out = dates(arguments.items, arguments.seed, held_out=True)

    lines = [{"messages": trial.turns([pair])} for pair in train]
    tuned = arguments.tuned or trial.tune(client, arguments, lines, "dates")

    asked = [trial.system(rules())]
    shown = trial.turns(train[:8])
    items = [
        {
            "iso": iso,
            "prompts": {
                "base": [*asked, trial.user(written)],
                "few": [*asked, *shown, trial.user(written)],
                "tuned": [trial.user(written)],
            },
        }
        for written, iso in held_out
    ]
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base"),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few"),
        trial.Row(name="tuned", model=tuned, prompt="tuned"),
    ]
    # The right date anywhere in the answer will do: the base is not blamed for a sentence around it.
    grader = {
        "type": "string_check", "name": "date", "operation": "like",
        "input": "{{ sample.output_text }}", "reference": "{{ item.iso }}",
    }  # fmt: skip
    measured = trial.measure(client, "dates", items, rows, [grader], max_tokens=20)
    trial.finish(client, arguments, measured, tuned)


if __name__ == "__main__":
    main()
