"""Fine-tune and ask, as one writes it for OpenAI; nothing in it is Tunekeeper's.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/fine_tune.py examples/tickets.jsonl --model smollm2-135m

With an alias for "gpt-4o-mini-2024-07-18" in tunekeeper.toml, --model can be left out.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="gpt-4o-mini-2024-07-18")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    client = OpenAI()

    with arguments.file.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="fine-tune")
    uploaded = client.files.wait_for_processing(uploaded.id, poll_interval=0.5)
    if uploaded.status == "error":
        sys.exit(f"The file has faults: {uploaded.status_details}")

    job = client.fine_tuning.jobs.create(
        model=arguments.model,
        training_file=uploaded.id,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": arguments.epochs}}},
        suffix="tickets",
        seed=1,
    )
    print(job.id)

    seen: set[str] = set()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
            if event.id not in seen:
                seen.add(event.id)
                print(event.message)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        sys.exit(f"The job {job.status}: {job.error.message if job.error else 'no reason is given'}")

    first = json.loads(arguments.file.read_text("utf-8").splitlines()[0])
    completion = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=first["messages"][:-1],
        max_completion_tokens=32,
        temperature=0,
    )
    print(f"{job.fine_tuned_model} says: {completion.choices[0].message.content}")


if __name__ == "__main__":
    main()
