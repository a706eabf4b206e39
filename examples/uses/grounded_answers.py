"""Answers from retrieved passages that ignore distractors, and say when the passages do not have it.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/grounded_answers.py [--gold-only]

Each question comes with four passages. At most one holds the answer; the others tell the same of other machines, or
something else of the same machine, and in a quarter of the questions none holds it. An answer is

    right         the number asked for and no other, or "Not in the passages." where it is not there
    within        every number in it stands in a passage
    undistracted  no number in it is a distractor's

Training with distractors is what teaches this; --gold-only trains on the passage with the answer alone, to compare.

The passages are made by rules from a seed, so that no model can know the numbers. Names of machines are made of other
syllables in the held-out items, and for each fact one of the wordings is never trained on.
"""

import random

import trial

STARTS = (("Kel", "Bor", "Ash", "Fen", "Tarn", "Wex"), ("Dru", "Oly", "Pim", "Sul"))
ENDS = (("da", "mere", "low", "stow", "rick", "field"), ("gate", "nock", "vale", "ric"))
MACHINES = ("pump", "press", "mill", "boiler", "crane", "dryer")
FACTS: dict[str, tuple[str, tuple[str, str, str], tuple[int, int]]] = {
    "weight": (
        "How many kilograms does the {machine} weigh?",
        ("The {machine} weighs {n} kilograms.", "At {n} kilograms, the {machine} needs a forklift.",
         "The {machine} brings {n} kilograms to the scales."),
        (110, 990),
    ),
    "year": (
        "In which year was the {machine} installed?",
        ("The {machine} was installed in {n}.", "In {n} the {machine} was installed in the main hall.",
         "Installed in {n}, the {machine} still has its first motor."),
        (1951, 2024),
    ),
    "pressure": (
        "At how many bar does the {machine} work?",
        ("The {machine} works at {n} bar.", "The working pressure of the {machine} is {n} bar.",
         "Nobody runs the {machine} above its {n} bar."),
        (2, 98),
    ),
    "bay": (
        "In which bay does the {machine} stand?",
        ("The {machine} stands in bay {n}.", "Bay {n} belongs to the {machine}.", "See bay {n} to find the {machine}."),
        (10, 99),
    ),
}  # fmt: skip
RULE = "Answer from the passages only, with the number alone. If they do not have it, say: Not in the passages."
MISSING = "Not in the passages."
NUMBERS = """
def numbers(text):
    return set(''.join(c if c.isdigit() else ' ' for c in text).split())

"""
RIGHT = (
    NUMBERS
    + """
def grade(sample, item):
    said = numbers(sample['output_text'])
    if item['answer']:
        return 1.0 if said == {item['answer']} else 0.0
    return 1.0 if not said and 'not in the passages' in sample['output_text'].lower() else 0.0
"""
)
WITHIN = (
    NUMBERS
    + """
def grade(sample, item):
    return 1.0 if all(number in item['numbers'] for number in numbers(sample['output_text'])) else 0.0
"""
)
UNDISTRACTED = (
    NUMBERS
    + """
def grade(sample, item):
    said = numbers(sample['output_text'])
    return 0.0 if any(number in said and number != item['answer'] for number in item['numbers']) else 1.0
"""
)


def questions(n: int, seed: int, *, held_out: bool) -> list[trial.Json]:
    """Questions with passages, numbers in them, and the answer; an empty answer: it is not there."""
    draw = random.Random(f"{seed} {held_out}")

    def machine() -> str:
        return f"{draw.choice(STARTS[held_out])}{draw.choice(ENDS[held_out])} {draw.choice(MACHINES)}"

    def tell(fact: str, of: str, number: str) -> str:
        _, told, _ = FACTS[fact]
        return (told[2] if held_out else draw.choice(told[:2])).format(machine=of, n=number)

    made = []
    for n_question in range(n):
        kinds = list(FACTS)
        fact = kinds[n_question % len(kinds)]
        asked = machine()
        others: list[str] = []
        while len(others) < 3:
            if (other := machine()) != asked and other not in others:
                others.append(other)
        has_it = draw.random() >= 0.25
        # Same fact of others, and another fact of the machine asked for.
        about = [(fact, asked) if has_it else (fact, others[2]), (fact, others[0]), (fact, others[1])]
        about.append((draw.choice([kind for kind in kinds if kind != fact]), asked))
        numbers: list[str] = []
        for kind, _ in about:
            low, high = FACTS[kind][2]
            numbers.append(str(draw.choice([n for n in range(low, high) if str(n) not in numbers])))
        passages = [tell(kind, of, number) for (kind, of), number in zip(about, numbers, strict=True)]
        gold = passages[0]
        draw.shuffle(passages)
        made.append(
            {
                "question": FACTS[fact][0].format(machine=asked),
                "passages": passages,
                "gold": gold if has_it else "",
                "numbers": numbers,
                "answer": numbers[0] if has_it else "",
            }
        )
    return made


def prompt(question: trial.Json, passages: list[str]) -> str:
    return "\n".join([*(f"- {passage}" for passage in passages), f"Question: {question['question']}"])


def main() -> None:
    parser = trial.parser(__doc__, examples=160, items=60)
    parser.add_argument("--gold-only", action="store_true", help="Train without distractors.")
    arguments = parser.parse_args()
    client = trial.connect()
    train = questions(arguments.examples, arguments.seed, held_out=False)
    held_out = questions(arguments.items, arguments.seed, held_out=True)

    asked = [trial.system(RULE)]
    lines = []
    for each in train:
        passages = [each["gold"]] if arguments.gold_only and each["gold"] else each["passages"]
        if each["gold"] or not arguments.gold_only:
            lines.append({"messages": [*asked, *trial.turns([(prompt(each, passages), each["answer"] or MISSING)])]})
    tuned = arguments.tuned or trial.tune(client, arguments, lines, "passages")

    shown = trial.turns((prompt(each, each["passages"]), each["answer"] or MISSING) for each in train[:6])
    for item in held_out:
        question = trial.user(prompt(item, item["passages"]))
        item["prompts"] = {"base": [*asked, question], "few": [*asked, *shown, question]}
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base"),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few"),
        trial.Row(name="tuned", model=tuned, prompt="base"),
    ]
    graders = [
        {"type": "python", "name": name, "source": source}
        for name, source in (("right number", RIGHT), ("within", WITHIN), ("undistracted", UNDISTRACTED))
    ]
    measured = trial.measure(client, "passages", held_out, rows, graders, max_tokens=24)
    trial.finish(client, arguments, measured, tuned)


if __name__ == "__main__":
    main()
