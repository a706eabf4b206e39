"""Sampling from weights that are being trained on a vLLM server: the adapter is loaded there, step by step.

The server runs the base model with --enable-lora, a --max-lora-rank that suffices, and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and sees our home directory (`Upstream.home`). Each set of weights has a name
of its own, so that nothing that was cached for others answers. Prompts and answers are token ids
(`return_token_ids`, vLLM 0.11 or later): text that is tokenised anew need not give the tokens that were sampled.

The log-probabilities that come with the tokens are those of the server's arithmetic, before temperature and grammar
(--logprobs-mode raw_logprobs, the default); the trainer corrects by them.
"""

import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from tunekeeper.errors import TunekeeperError, UpstreamFailed
from tunekeeper.inference.constrain import Grammars
from tunekeeper.inference.params import FinishReason, Piece, Sampling, TokenLogprob
from tunekeeper.inference.remote import ROLLOUTS_PREFIX, auth_headers
from tunekeeper.models.adapters import save_adapter
from tunekeeper.settings import Upstream
from tunekeeper.types import Json

if TYPE_CHECKING:
    from tunekeeper.datasets.tokenizer import Tokenizer
    from tunekeeper.models.lora import LoraAdapter

AT_ONCE = 64
"""Answers that the server is asked for at the same time; it batches them."""

ATTEMPTS = 6
"""Requests before a server that fails is given up: with the pauses between, half a minute."""

AS_THE_MODEL_SAYS: Json = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Said, for what is left out comes from the base's generation_config.json: the answers would be those of another
distribution than the one that learns, and no log-probability would show it."""

_AGAIN = (408, 429, 500, 502, 503, 504)


class VllmSampler:
    """One job's answers from one server; at any time it has one of the job's adapters loaded."""

    def __init__(
        self,
        upstream: Upstream,
        tokenizer: "Tokenizer",
        base_directory: Path,
        *,
        base_id: str,
        directory: Path,
        there: PurePosixPath,
        pause_s: float = 1.0,
    ) -> None:
        """`directory`: where adapters are put for the server; `there`: the same as the server sees it."""
        self._upstream, self._tokenizer, self._base_id = upstream, tokenizer, base_id
        self._directory, self._there, self._pause_s = directory, there, pause_s
        self._grammars = Grammars(base_directory, vocab_size=tokenizer.vocab_size, eos_ids=tokenizer.eos_ids)
        self._grammar_lock = threading.Lock()
        self._http = httpx.Client(
            base_url=upstream.base_url.rstrip("/") + "/",
            headers=auth_headers(upstream),
            timeout=httpx.Timeout(upstream.timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=AT_ONCE),
        )
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm")
        self._loading = threading.Lock()
        self._name: str | None = None
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.iterdir():  # by a run that was killed
            self._drop(left.name)

    @property
    def context(self) -> int:
        """No limit of its own: the server refuses what is too long for it."""
        return sys.maxsize

    def begin(self, adapter: "LoraAdapter | None") -> None:
        """Answer from these weights from now on; raises UpstreamFailed."""
        if adapter is None:
            raise UpstreamFailed(f"The upstream {self._upstream.name} can be given adapters only, no whole models.")
        before, name = self._name, f"{ROLLOUTS_PREFIX}{uuid.uuid4().hex[:16]}"
        self._directory.joinpath(name).mkdir()
        save_adapter(adapter, self._directory / name, base_id=self._base_id)
        self._name = name
        self._load()
        if before is not None:
            self._drop(before)

    def ask(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Sampling],
        deliver: Sequence[Callable[[Piece | Exception], None]],
    ) -> None:
        """Start the answers; each is delivered whole, or the error that it came to."""
        for prompt, one, to in zip(prompts, params, deliver, strict=True):
            self._pool.submit(self._answer_to, to, prompt, one)

    def end(self) -> None:
        """Nothing: the adapter is taken away once the next one is there."""

    def close(self) -> None:
        """Take the adapter away, and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        if self._name is not None:
            self._drop(self._name)
        self._http.close()
        with suppress(OSError):  # of a job that is only estimated nothing stays
            self._directory.rmdir()
            self._directory.parent.rmdir()

    def _load(self) -> None:
        name = self._name
        with self._loading:
            answer = self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(self._there / str(name))})
            if answer.status_code != 200 and "already" not in answer.text:
                raise self._failed(
                    f"could not load the adapter {self._there / str(name)}: {answer.text[:300]} Start it with "
                    "--enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and let it see the home "
                    "directory (`home` of the upstream)"
                )

    def _drop(self, name: str) -> None:
        with suppress(httpx.HTTPError):  # it may have gone already; the next weights have another name
            self._http.post("unload_lora_adapter", json={"lora_name": name})
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _answer_to(self, deliver: Callable[[Piece | Exception], None], prompt: Sequence[int], params: Sampling) -> None:
        try:
            piece = self._answer(prompt, params)
        except Exception as error:
            deliver(error)
        else:
            deliver(piece)

    def _answer(self, prompt: Sequence[int], params: Sampling) -> Piece:
        body: Json = {
            "model": self._name,
            "prompt": list(prompt),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            **AS_THE_MODEL_SAYS,
            "seed": params.seed,
            "logprobs": 1,
            "return_token_ids": True,
            "stop_token_ids": list(self._tokenizer.eos_ids),
        }
        if params.grammar is not None:
            body["structured_outputs"] = {"grammar": params.grammar}
        answer = self._post("completions", body)
        if answer.status_code == 404:  # the server was started again, and has lost the adapter
            self._load()
            answer = self._post("completions", body)
        if answer.status_code != 200:
            raise self._failed(f"answered with status {answer.status_code}: {answer.text[:300]}")
        try:
            return self._read(answer.json()["choices"][0], prompt, params)
        except (ValueError, LookupError, TypeError) as error:
            raise self._failed(
                f"gave no token ids with their log-probabilities ({error!r}); vLLM does from 0.11 on"
            ) from error

    def _read(self, choice: Json, prompt: Sequence[int], params: Sampling) -> Piece:
        tokens = [int(token) for token in choice["token_ids"]]
        logprobs = [float(logprob) for logprob in choice["logprobs"]["token_logprobs"]]
        if len(tokens) != len(logprobs):
            raise ValueError(f"{len(tokens)} tokens, {len(logprobs)} log-probabilities")
        if list(choice.get("prompt_token_ids") or prompt) != list(prompt):
            raise self._failed("read another prompt than it was sent; it does not run this job's base model")
        if choice["finish_reason"] not in ("stop", "length"):
            raise self._failed(f"broke an answer off: {choice['finish_reason']}")
        reason: FinishReason = choice["finish_reason"]
        ends = self._tokenizer.eos_ids
        forced = self._forced(params.grammar, tokens) if params.grammar is not None else set()
        if reason == "stop" and ends and (not tokens or tokens[-1] not in ends):
            forced.add(len(tokens))  # it was not chosen, so it is not learned
            tokens.append(ends[0])
            logprobs.append(0.0)
        shown = tokens[:-1] if reason == "stop" and ends else tokens
        read = self._tokenizer.token_bytes
        return Piece(
            text=b"".join(read(token) for token in shown).decode("utf-8", "replace"),
            logprobs=tuple(
                TokenLogprob(token, read(token), logprob) for token, logprob in zip(tokens, logprobs, strict=True)
            ),
            finish_reason=reason,
            n_generated=len(shown),
            tokens=tuple(tokens),
            forced=frozenset(forced),
        )

    def _forced(self, grammar: str, tokens: Sequence[int]) -> set[int]:
        """The places at which the grammar let one token through only."""
        places: set[int] = set()
        with self._grammar_lock:
            matcher = self._grammars.matcher(grammar)
            for place, token in enumerate(tokens):
                if np.unpackbits(matcher.allowed().view(np.uint8)).sum() == 1:
                    places.add(place)
                if token in self._tokenizer.eos_ids:
                    break
                try:
                    matcher.accept(token)
                except TunekeeperError as error:
                    raise self._failed(
                        "does not hold answers to the grammar; start it with "
                        """--structured-outputs-config '{"backend": "guidance"}'"""
                    ) from error
        return places

    def _post(self, path: str, body: Json) -> httpx.Response:
        """The answer, whatever it says; a server that is away or busy is asked again."""
        reason: Any = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                answer = self._http.post(path, json=body)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.status_code not in _AGAIN:
                return answer
            reason = f"status {answer.status_code}: {answer.text[:300]}"
        raise self._failed(f"was asked {ATTEMPTS} times: {reason}")

    def _failed(self, reason: str) -> UpstreamFailed:
        name, url = self._upstream.name, self._upstream.base_url
        return UpstreamFailed(
            f"The upstream {name} at {url}, where this job's answers are sampled, {reason}. When that is mended, "
            "resume the job: it goes on from its last state."
        )
