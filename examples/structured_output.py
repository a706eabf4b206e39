"""An answer that is an instance of a class: the schema is enforced while the model writes.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/structured_output.py --model smollm2-135m "The kettle does not switch off."

The form is always right, for tokens that break the schema cannot be chosen. Whether the content is right
depends on the model: tune it.
"""

import argparse
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Ticket(BaseModel):
    department: Literal["shipping", "billing", "account", "product"]
    is_urgent: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ticket")
    parser.add_argument("--model", default="gpt-4o-mini-2024-07-18")
    arguments = parser.parse_args()
    client = OpenAI()

    completion = client.chat.completions.parse(
        model=arguments.model,
        messages=[
            {"role": "system", "content": "Sort the customer's ticket. Answer with JSON."},
            {"role": "user", "content": arguments.ticket},
        ],
        response_format=Ticket,
        max_completion_tokens=128,
        temperature=0,
    )
    ticket = completion.choices[0].message.parsed
    assert ticket is not None
    print(f"department: {ticket.department}")
    print(f"urgent: {'yes' if ticket.is_urgent else 'no'}")


if __name__ == "__main__":
    main()
