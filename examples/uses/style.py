"""Style and tone: a clerk's blunt note becomes a reply in the voice of the house.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/style.py

The voice is a set of rules that a program can check: greet by name, thank for the patience, never blame, no exclamation
mark, at most 45 words, sign as the house. What the reply says is checked too: customer, thing and order number.

The notes are made by rules from a seed. First names and goods are drawn apart (a third of each is for the held-out
items only), order numbers are drawn apart by their first digit, and of the four ways in which each matter is noted
down one is never trained on.
"""

import random
from collections.abc import Sequence

import trial

# fmt: off
NAMES = (
    "Ada", "Bruno", "Carla", "Dario", "Edith", "Felix", "Greta", "Hugo", "Irma", "Jonas", "Karin", "Leo", "Mona",
    "Nils", "Olga", "Pedro", "Rosa", "Sven", "Tilda", "Ugo", "Vera", "Wanda", "Yara", "Zeno", "Anouk", "Boris",
    "Clara", "Dirk", "Elena", "Fabian", "Gina", "Henrik", "Ines", "Jakob", "Klara", "Luis", "Marta", "Noel", "Petra",
    "Quentin",
)
GOODS = (
    "kettle", "toaster", "desk lamp", "raincoat", "tent", "backpack", "bicycle pump", "office chair",
    "coffee grinder", "frying pan", "wall clock", "headset", "keyboard", "blanket", "garden hose", "ladder", "mirror",
    "suitcase", "teapot", "umbrella", "vacuum cleaner", "water filter", "yoga mat", "bookshelf", "alarm clock",
    "camera", "doormat", "fan", "globe", "hammock", "iron", "jacket", "lantern", "mattress", "pillow", "rug",
)
# fmt: on
SIGNED = "Yours, Harbour & Finch"
MATTERS: dict[str, tuple[tuple[str, str, str, str], str]] = {
    "late": (
        ("{good} late, blame the carrier", "{good} not there yet, stuck in the depot", "delay with the {good}",
         "{good} should have come last week, has not"),
        "Your {good} (order {order}) is on its way and will reach you this week.",
    ),
    "damaged": (
        ("{good} came broken", "{good} damaged, she says", "dent in the {good} on arrival", "{good} arrived in pieces"),
        "We are sorry that your {good} (order {order}) was damaged, and a new one leaves us today.",
    ),
    "refund": (
        ("money back for the {good}, done today", "refunded the {good}", "{good}: refund booked",
         "paid back the {good} this morning"),
        "We have refunded your {good} (order {order}), and the money will be with you in three days.",
    ),
    "stock": (
        ("{good} sold out", "no {good} left in stock", "{good} out of stock until next month",
         "we have run out of the {good}"),
        "Your {good} (order {order}) is out of stock, and we will send it next month.",
    ),
    "cancelled": (
        ("wants out of the {good}, cancelled it", "{good} cancelled as asked", "cancellation of the {good} is through",
         "struck the {good} off, customer changed mind"),
        "We have cancelled your {good} (order {order}) as you wished, and nothing will be charged.",
    ),
    "address": (
        ("{good}: new address noted", "changed the address for the {good}", "{good} goes to the new flat, updated",
         "moved house, {good} redirected"),
        "Your {good} (order {order}) will go to your new address.",
    ),
}  # fmt: skip
VOICE = (
    "You write for the shop Harbour & Finch. Turn the clerk's note into a reply to the customer. The voice of the "
    "house: begin with Hello and the first name; then thank the customer for the patience; then say what happens, "
    "naming the thing and the order number; blame nobody; no exclamation marks; at most 45 words; end with: " + SIGNED
)
TONE = f"""
def grade(sample, item):
    text = sample['output_text'].strip()
    low = text.lower()
    kept = [
        text.startswith('Hello ' + item['name']),
        'patience' in low and 'thank' in low,
        '!' not in text,
        len(text.split()) <= 45,
        text.endswith({SIGNED!r}),
        not any(word in low for word in ('blame', 'fault', 'carrier', 'she says', 'you forgot')),
    ]
    return 1.0 if all(kept) else 0.0
"""
FACTS = """
def grade(sample, item):
    text = sample['output_text'].lower()
    return 1.0 if all(fact.lower() in text for fact in (item['name'], item['good'], item['order'])) else 0.0
"""
MATTER = """
def grade(sample, item):
    text = sample['output_text'].lower()
    return 1.0 if any(word in text for word in item['says']) else 0.0
"""
SAYS = {
    "late": ["on its way", "reach you", "late", "delay"],
    "damaged": ["damage", "broken", "new one", "replace"],
    "refund": ["refund", "money back", "paid back"],
    "stock": ["stock", "sold out", "run out"],
    "cancelled": ["cancel"],
    "address": ["address", "new home"],
}


def notes(n: int, seed: int, *, held_out: bool) -> list[trial.Json]:
    """Notes with the reply that the house would write."""
    draw = random.Random(f"{seed} {held_out}")
    names, goods = (_part(words, held_out) for words in (NAMES, GOODS))
    made = []
    for n_note in range(n):
        matter = list(MATTERS)[n_note % len(MATTERS)]
        phrasings, says = MATTERS[matter]
        name, good = draw.choice(names), draw.choice(goods)
        order = f"{draw.choice('89') if held_out else draw.choice('1234567')}{draw.randrange(1000):03}"
        noted = (phrasings[3] if held_out else draw.choice(phrasings[:3])).format(good=good)
        reply = f"Hello {name}, thank you for your patience. {says.format(good=good, order=order)}\n{SIGNED}"
        note = f"{name}, order {order}: {noted}"
        made.append({"note": note, "reply": reply, "name": name, "good": good, "order": order, "says": SAYS[matter]})
    return made


def _part(words: Sequence[str], held_out: bool) -> list[str]:
    return [word for n, word in enumerate(words) if (n % 3 == 2) == held_out]


def main() -> None:
    arguments = trial.parser(__doc__, examples=120, items=60).parse_args()
    client = trial.connect()
    train = notes(arguments.examples, arguments.seed, held_out=False)
    held_out = notes(arguments.items, arguments.seed, held_out=True)

    lines = [{"messages": trial.turns([(each["note"], each["reply"])])} for each in train]
    tuned = arguments.tuned or trial.tune(client, arguments, lines, "style")

    asked = [trial.system(VOICE)]
    shown = trial.turns((each["note"], each["reply"]) for each in train[: len(MATTERS)])
    for item in held_out:
        note = trial.user(item["note"])
        item["prompts"] = {"base": [*asked, note], "few": [*asked, *shown, note], "tuned": [note]}
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base"),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few"),
        trial.Row(name="tuned", model=tuned, prompt="tuned"),
    ]
    graders = [
        {"type": "python", "name": name, "source": source}
        for name, source in (("tone", TONE), ("facts", FACTS), ("matter", MATTER))
    ]
    measured = trial.measure(client, "style", held_out, rows, graders, max_tokens=56)
    trial.finish(client, arguments, measured, tuned)


if __name__ == "__main__":
    main()
