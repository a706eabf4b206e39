"""A strict output schema: what a customer writes about a payment becomes JSON of exactly one form.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/strict_schema.py

An answer is right when it fits the schema (nothing missing, nothing added, nothing around it) and holds the right
values. Two more rows are under response_format: then the form is right, and what is in it is still the model's.

The messages are made by rules from a seed; amounts are written by babel from CLDR, as English, German and French write
them. Payees are made of other syllables in the held-out items, amounts are drawn apart (every fourth number of cents),
and of the four ways in which each kind of payment is told one is never trained on.
"""

import json
import random

import trial
from babel.numbers import format_currency

TOLD = {
    "charge": (
        "{payee} took {money} from my account.",
        "I was charged {money} by {payee}.",
        "There is a payment of {money} to {payee} on my statement.",
        "Why did {payee} debit {money}?",
    ),
    "refund": (
        "{payee} sent {money} back to me.",
        "I got a refund of {money} from {payee}.",
        "{money} came back from {payee}.",
        "{payee} reimbursed me {money}.",
    ),
    "transfer": (
        "Please transfer {money} to {payee}.",
        "Send {money} to {payee} today.",
        "I want to move {money} to {payee}.",
        "Could you wire {money} over to {payee}?",
    ),
}
CURRENCIES = {"en_US": ("USD", "GBP"), "de": ("EUR", "CHF"), "fr": ("EUR", "CAD")}
STARTS = (("Nor", "Hal", "Ber", "Tor", "Gil", "Mar"), ("Ves", "Quo", "Zan", "Lum"))
ENDS = (("dale", "wick", "ton", "by", "sen", "mark"), ("ora", "ent", "ix", "ulo"))
FIRMS = (("Foods", "Rail", "Books", "Energy"), ("Travel", "Media"))
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": list(TOLD)},
        "payee": {"type": "string", "maxLength": 40},
        "amount": {"type": "number"},
        "currency": {"type": "string", "enum": ["CAD", "CHF", "EUR", "GBP", "USD"]},
    },
    "required": ["kind", "payee", "amount", "currency"],
    "additionalProperties": False,
}
FORM = """
import json

def grade(sample, item):
    try:
        said = json.loads(sample['output_text'])
    except ValueError:
        return 0.0
    if not isinstance(said, dict) or sorted(said) != ['amount', 'currency', 'kind', 'payee']:
        return 0.0
    fits = (
        said['kind'] in ('charge', 'refund', 'transfer')
        and said['currency'] in ('CAD', 'CHF', 'EUR', 'GBP', 'USD')
        and isinstance(said['payee'], str) and len(said['payee']) <= 40
        and isinstance(said['amount'], (int, float)) and not isinstance(said['amount'], bool)
    )
    return 1.0 if fits else 0.0
"""
# Within the first object of the answer, so that words around it are the form's fault alone.
VALUES = """
import json

def grade(sample, item):
    text = sample['output_text']
    try:
        said = json.loads(text[text.index('{'):text.rindex('}') + 1])
    except ValueError:
        return 0.0
    return 1.0 if all(said.get(name) == value for name, value in item['record'].items()) else 0.0
"""


def payments(n: int, seed: int, *, held_out: bool) -> list[tuple[str, trial.Json]]:
    """Messages, each with its record."""
    draw = random.Random(f"{seed} {held_out}")
    made = []
    for number in range(n):
        kind = list(TOLD)[number % len(TOLD)]
        locale = draw.choice(list(CURRENCIES))
        currency = draw.choice(CURRENCIES[locale])
        cents = 4 * draw.randrange(100, 100_000) + (0 if held_out else draw.randint(1, 3))
        payee = f"{draw.choice(STARTS[held_out])}{draw.choice(ENDS[held_out])} {draw.choice(FIRMS[held_out])}"
        money = format_currency(cents / 100, currency, locale=locale).replace("\u202f", " ").replace("\xa0", " ")
        told = TOLD[kind][3] if held_out else draw.choice(TOLD[kind][:3])
        record = {"kind": kind, "payee": payee, "amount": cents / 100, "currency": currency}
        made.append((told.format(payee=payee, money=money), record))
    return made


def main() -> None:
    arguments = trial.parser(__doc__, examples=120, items=60).parse_args()
    client = trial.connect()
    train = [
        (told, json.dumps(record)) for told, record in payments(arguments.examples, arguments.seed, held_out=False)
    ]
    held_out = payments(arguments.items, arguments.seed, held_out=True)

    tuned = arguments.tuned or trial.tune(
        client, arguments, [{"messages": trial.turns([pair])} for pair in train], "schema"
    )

    asked = [trial.system(f"Answer with one JSON object by this schema, and nothing else:\n{json.dumps(SCHEMA)}")]
    shown = trial.turns(train[:6])
    items = [
        {
            "record": record,
            "prompts": {
                "base": [*asked, trial.user(told)],
                "few": [*asked, *shown, trial.user(told)],
                "tuned": [trial.user(told)],
            },
        }
        for told, record in held_out
    ]
    enforced = {"type": "json_schema", "json_schema": {"name": "payment", "strict": True, "schema": SCHEMA}}
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base"),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few"),
        trial.Row(
            name="base, few-shot, form enforced", model=arguments.model, prompt="few",
            params={"response_format": enforced},
        ),
        trial.Row(name="tuned", model=tuned, prompt="tuned"),
        trial.Row(name="tuned, form enforced", model=tuned, prompt="tuned", params={"response_format": enforced}),
    ]  # fmt: skip
    graders = [
        {"type": "python", "name": name, "source": source} for name, source in (("form", FORM), ("values", VALUES))
    ]
    measured = trial.measure(client, "schema", items, rows, graders, max_tokens=56)
    trial.finish(client, arguments, measured, tuned, before=("base, few-shot", "base, few-shot, form enforced"))


if __name__ == "__main__":
    main()
