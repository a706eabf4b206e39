"""A small model brought up to a larger one, on one task: which language a country's name is in.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/small_to_large.py --larger MODEL

--larger is any model that the server answers for, an upstream's too; it gets ten examples in its prompt. Without it a
stand-in is tuned, which is no larger than the base: its adapter has rank 16 and learns from every example, the small
one's has rank 4 and learns from half of them.

The names are those of ten languages in CLDR, by babel; a name that two of them share is left out. Countries are drawn
apart: no name of a held-out country is in the training file, in any language.
"""

import random
from collections import Counter

import trial
from babel import Locale

LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian",
    "nl": "Dutch", "pl": "Polish", "sv": "Swedish", "fi": "Finnish", "tr": "Turkish",
}  # fmt: skip
SMALL = {"lora_rank": 4}


def names(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Questions with their language, to train on and held out; shuffled."""
    written = {
        (code, language): name
        for language in LANGUAGES
        for code, name in Locale(language).territories.items()
        if len(code) == 2
    }
    counts = Counter(written.values())
    draw = random.Random(seed)
    codes = sorted({code for code, _ in written})
    apart = set(draw.sample(codes, len(codes) // 4))
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for (code, language), name in written.items():
        if counts[name] == 1:
            parts[code in apart].append((f"Which language is this name in: {name}", LANGUAGES[language]))
    for part in parts:
        draw.shuffle(part)
    return parts


def main() -> None:
    parser = trial.parser(__doc__, examples=240, items=80)
    parser.add_argument("--larger", help="A model to be matched; without it a stand-in is tuned.")
    parser.add_argument("--margin", type=float, default=0.1, help="Worse by less than that is as good.")
    arguments = parser.parse_args()
    client = trial.connect()
    rest, held_out = names(arguments.seed)
    train = rest[: arguments.examples]

    lines = [{"messages": trial.turns([pair])} for pair in train]
    tuned = arguments.tuned or trial.tune(client, arguments, lines[::2], "small", **SMALL)
    larger = arguments.larger or trial.tune(client, arguments, lines, "stand-in")

    asked = [trial.system(f"Answer with one of: {', '.join(LANGUAGES.values())}.")]
    shown = trial.turns({language: (question, language) for question, language in train}.values())
    items = [
        {
            "language": language,
            "prompts": {
                "base": [*asked, trial.user(question)],
                "few": [*asked, *shown, trial.user(question)],
                "tuned": [trial.user(question)],
            },
        }
        for question, language in held_out[: arguments.items]
    ]
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base"),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few"),
        trial.Row(name="tuned", model=tuned, prompt="tuned"),
        trial.Row(
            name="larger, few-shot" if arguments.larger else "larger (stand-in)",
            model=larger,
            prompt="few" if arguments.larger else "tuned",
        ),
    ]
    grader = {
        "type": "string_check", "name": "language", "operation": "eq",
        "input": "{{ sample.output_text }}", "reference": "{{ item.language }}",
    }  # fmt: skip
    measured = trial.measure(client, "languages", items, rows, [grader], max_tokens=8)
    trial.finish(client, arguments, measured, tuned, before=("base, few-shot", rows[-1].name), margin=arguments.margin)


if __name__ == "__main__":
    main()
