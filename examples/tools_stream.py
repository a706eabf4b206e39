"""A function call read while it is written, answered, and put into words.

Run it so:

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/tools_stream.py --model smollm2-135m "What is the weather in Oslo?"
"""

import argparse
import json
from typing import Any

from openai import OpenAI

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--model", default="gpt-4o-mini-2024-07-18")
    arguments = parser.parse_args()
    client = OpenAI()

    messages: list[Any] = [{"role": "user", "content": arguments.question}]
    with client.chat.completions.stream(
        model=arguments.model,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_completion_tokens=128,
        temperature=0,
    ) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                print(event.arguments_delta, end="", flush=True)
        answer = stream.get_final_completion().choices[0].message
    print()

    for call in answer.tool_calls or []:
        function = {"name": call.function.name, "arguments": call.function.arguments}
        messages.append(
            {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
        )
        city = json.loads(call.function.arguments)["city"]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"{city}: 4 degrees, rain"})
    final = client.chat.completions.create(
        model=arguments.model, messages=messages, tools=[WEATHER], tool_choice="none", max_completion_tokens=48
    )
    print(final.choices[0].message.content)


if __name__ == "__main__":
    main()
