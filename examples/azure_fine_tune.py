"""Fine-tune and ask, as one writes it for Azure OpenAI: the Azure client, an api-version, a deployment's name.

    export AZURE_OPENAI_ENDPOINT=http://127.0.0.1:8000 AZURE_OPENAI_API_KEY=none
    python examples/azure_fine_tune.py examples/tickets.jsonl --model smollm2-135m

There is nothing to deploy: a tuned model's id is accepted wherever Azure wants a deployment.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from openai import AzureOpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="gpt-4o-mini-2024-07-18")
    arguments = parser.parse_args()
    client = AzureOpenAI(api_version="2025-04-01-preview")

    with arguments.file.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="fine-tune")
    client.files.wait_for_processing(uploaded.id, poll_interval=0.5)

    job = client.fine_tuning.jobs.create(
        model=arguments.model,
        training_file=uploaded.id,
        hyperparameters={"n_epochs": 1},
        suffix="tickets",
        extra_body={"trainingType": "GlobalStandard"},
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        print(job.status)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        sys.exit(f"The job {job.status}: {job.error.message if job.error else 'no reason is given'}")

    first = json.loads(arguments.file.read_text("utf-8").splitlines()[0])
    completion = client.chat.completions.create(
        model=job.fine_tuned_model,  # goes into the path: /openai/deployments/ft:…/chat/completions
        messages=first["messages"][:-1],
        max_completion_tokens=32,
        temperature=0,
    )
    print(f"{job.fine_tuned_model} says: {completion.choices[0].message.content}")


if __name__ == "__main__":
    main()
