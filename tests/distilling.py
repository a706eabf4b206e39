"""A home directory with a tiny student and the stored answers of a large teacher: where tests of distillation begin."""

from pathlib import Path

from jobshop import BASE, CAPITALS, settings_of
from tunekeeper.settings import Settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Model, StoredCompletion

HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 8}


def answered(n: int, *, model: str = "large", city: str = "") -> StoredCompletion:
    """The teacher's answer to the question with this number; every tenth question has an address in it."""
    asked = f"Which city has the number {n}?" + (" Tell eve@corp.io." if n % 10 == 0 else "")
    message = {"role": "assistant", "content": f"{city or CAPITALS[n % len(CAPITALS)]} {n}"}
    return StoredCompletion(
        id=f"chatcmpl-{model}-{n}",
        created=1_790_000_000 + n,
        model=model,
        request={"model": model, "messages": [{"role": "user", "content": asked}]},
        response={
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
        },
        source="upstream",
        metadata={"team": "a" if n % 2 else "b"},
        latency_s=2.0,
    )


def stocked(home: Path, base: Path, n: int = 60) -> Settings:
    """A home with `n` answers of the teacher, an image that nobody can learn, and one answer of another model."""
    store = Store(connect(home))
    store.add_model(Model(id=BASE, created_at=store.now(), kind="base", path=str(base), base=BASE))
    for k in range(n):
        store.add_completion(answered(k))
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    seen = answered(n, city="Image")
    store.add_completion(
        StoredCompletion(
            id="chatcmpl-image",
            created=seen.created,
            model="large",
            request={"model": "large", "messages": [{"role": "user", "content": image}]},
            response=seen.response,
            source="upstream",
        )
    )
    store.add_completion(answered(0, model="other"))
    store.close()
    return settings_of(home)
