"""A server with vLLM's endpoints for completions and adapters, on our own engine: what there is no room for here.

It loads adapters from disk as PEFT wrote them, so what answers is what was saved; it forgets them when told to.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.params import Sampling
from tunekeeper.models.load import load_adapter, load_decoder
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.trainer.loop import Forest
from tunekeeper.types import Branch, Tree


class FakeVllm(ThreadingHTTPServer):
    """Remembers which adapters it has, and what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.decoder = load_decoder(base, dtype="fp32")
        self.tokenizer = Tokenizer.load(base)
        self.engine = Engine(
            self.decoder, self.tokenizer, base, cache_tokens=8192, max_batch=8, max_waiting=1000, chunk_tokens=512
        )
        self.adapters: dict[str, LoraAdapter] = {}
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.failures: list[int] = []
        """Status codes of the next answers."""
        self.without: set[str] = set()
        """Keys that its answers lack: an older version."""
        self.shift = 0.0
        """How far its log-probabilities are off."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def load_lora_adapter(self, body: dict[str, Any]) -> tuple[int, Any]:
        path = Path(body["lora_path"])
        if not path.is_dir():
            return 404, {"error": {"message": f"No adapter found for {path}"}}
        if body["lora_name"] in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{body['lora_name']}' has already been loaded."}}
        self.adapters[body["lora_name"]] = load_adapter(path, self.decoder)
        self.loaded.append(body["lora_name"])
        return 200, b"Success"

    def unload_lora_adapter(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": "not found"}}
        self.unloaded.append(body["lora_name"])
        return 200, b"Success"

    def completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        if body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        sampling = Sampling(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seed=body["seed"],
            grammar=(body.get("structured_outputs") or {}).get("grammar"),
        )
        adapter = self.adapters[body["model"]]
        answer = self.engine.answer(body["prompt"], sampling, adapter=adapter)
        choice = {
            "index": 0,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "logprobs": {"token_logprobs": self.logprobs(body["prompt"], answer.tokens, adapter)},
            "token_ids": list(answer.tokens),
            "prompt_token_ids": body["prompt"],
        }
        return 200, {"choices": [{key: value for key, value in choice.items() if key not in self.without}]}

    def logprobs(self, prompt: list[int], tokens: Sequence[int], adapter: LoraAdapter) -> list[float]:
        tree = Tree(tuple(prompt), (Branch(tuple(tokens), (1.0,) * len(tokens)),))
        with torch.no_grad():
            _, logprob_N, _ = Forest(self.decoder, [tree], adapter, 0).logprobs([0])
        return [logprob + self.shift for logprob in logprob_N.tolist()]


class _Handler(BaseHTTPRequestHandler):
    server: FakeVllm
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.failures:
            status, content = self.server.failures.pop(), b"not now"
        else:
            status, content = getattr(self.server, self.path.removeprefix("/v1/"))(body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_vllm(base: Path) -> Iterator[FakeVllm]:
    server = FakeVllm(base)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with server.engine:
            yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
