"""Replies of any OpenAI-compatible endpoint, over HTTP.

One request per reply (`n` is not asked for in one request: not every endpoint has it). A request
that fails for a passing reason is repeated with exponential back-off; one that is refused for being
longer than the model's context has no reply; one that fails for good stops the work with the
endpoint's own words. What comes back has text but no token ids.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

from caravan.data.records import FinishReason, Message
from caravan.errors import require
from caravan.inference.engine import TOO_LONG, EngineError, Generation, reply_seed
from caravan.recipe import OpenAIEngineConfig, Sampling

_PASSING = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
"""Status codes that may be gone at the next attempt."""
_TOO_LONG = re.compile(
    r"context[ _]?(length|size|window)|maximum model length|prompt is too long", re.IGNORECASE
)
"""What endpoints say of a request that does not fit the model: OpenAI, vLLM, SGLang, llama.cpp and
Anthropic each in words of their own."""
_FINISH: dict[Any, FinishReason] = {"stop": "stop", "length": "length"}


class _Passing(Exception):
    """A failure worth another attempt."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class OpenAIEngine:
    """Asks `{base_url}/chat/completions`, `concurrency` requests at a time."""

    def __init__(
        self,
        config: OpenAIEngineConfig,
        *,
        backoff_seconds: float = 0.5,
        max_backoff_seconds: float = 60.0,
    ) -> None:
        """
        Args:
            backoff_seconds: First wait; each further one is twice as long, up to the maximum.
        """
        self.config = config
        self.url = f"{_checked(config.base_url)}/chat/completions"
        self.backoff_seconds = backoff_seconds
        self.max_backoff_seconds = max_backoff_seconds
        self._httpx = require("httpx", extra="train", feature="an OpenAI-compatible engine")

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Generation]]:
        """Replies as `Engine` says; the seed is passed on, and kept to if the endpoint does.

        Raises:
            EngineError: a request failed for good, or kept failing.
        """
        jobs = [(p, i) for p in range(len(prompts)) for i in range(n)]
        replies: dict[tuple[int, int], Generation] = {}
        with (
            self._httpx.Client(
                headers=self._headers(),
                timeout=self.config.timeout_seconds,
                limits=self._httpx.Limits(max_connections=self.config.concurrency),
            ) as client,
            ThreadPoolExecutor(self.config.concurrency) as pool,
        ):
            pending = {
                pool.submit(self._reply, client, prompts[p], sampling, seed, i): (p, i)
                for p, i in jobs
            }
            try:
                for future in as_completed(pending):
                    replies[pending[future]] = future.result()
                    if progress is not None:
                        progress(len(replies), len(jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [[replies[p, i] for i in range(n)] for p in range(len(prompts))]

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.config.api_key_env, "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _reply(
        self,
        client: Any,
        prompt: Sequence[Message],
        sampling: Sampling,
        seed: int,
        index: int,
    ) -> Generation:
        """One reply, with as many attempts as the config allows."""
        number = reply_seed(seed, prompt, index)
        body = {
            "model": self.config.model,
            "messages": [message.model_dump() for message in prompt],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_completion_length,
            "seed": number % 2**31,
        }
        jitter = random.Random(number)
        for attempt in range(self.config.max_retries + 1):
            try:
                return self._attempt(client, body)
            except _Passing as failure:
                if attempt == self.config.max_retries:
                    raise EngineError(
                        f"{self.url} (model {self.config.model!r}) failed {attempt + 1} times, at "
                        f"last with: {failure}. Check that the endpoint is up and its limits; "
                        "raise max_retries or timeout_seconds, or lower concurrency"
                    ) from failure
                time.sleep(self._wait(attempt, failure.retry_after, jitter))
        raise AssertionError("the loop returns or raises")

    def _wait(self, attempt: int, retry_after: float | None, jitter: random.Random) -> float:
        """Seconds until the next attempt: what the endpoint asks for, or back-off with jitter."""
        backoff = self.backoff_seconds * 2.0**attempt * jitter.uniform(0.5, 1.0)
        return min(self.max_backoff_seconds, max(backoff, retry_after or 0.0))

    def _attempt(self, client: Any, body: dict[str, Any]) -> Generation:
        try:
            response = client.post(self.url, json=body)
        except self._httpx.TransportError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status in _PASSING:
            raise _Passing(
                f"HTTP {status}: {_excerpt(response.text)}",
                _seconds(response.headers.get("retry-after")),
            )
        if status in (400, 413) and _TOO_LONG.search(response.text):
            return TOO_LONG
        if status != 200:
            raise EngineError(
                f"{self.url} (model {self.config.model!r}) refused the request with HTTP {status}: "
                f"{_excerpt(response.text)}{self._hint(status)}"
            )
        return _parsed(response)

    def _hint(self, status: int) -> str:
        variable = self.config.api_key_env
        if status in (401, 403):
            if os.environ.get(variable):
                return f". Check the key in the environment variable {variable}"
            return f". Set the environment variable {variable} to the endpoint's key"
        if status == 404:
            return ". Check base_url (it usually ends in /v1) and model"
        return ""


def _checked(base_url: str) -> str:
    """`base_url` without a trailing slash, if it can be one."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineError(f"base_url {base_url!r} is not an http(s) URL, as https://host/v1")
    if parts.username or parts.password:
        raise EngineError("base_url holds a user or password; give the key by api_key_env instead")
    if parts.query or parts.fragment:
        raise EngineError(f"base_url {base_url!r} has a query or a fragment; drop it")
    stripped = base_url.rstrip("/")
    if stripped.endswith("/completions"):
        raise EngineError(f"base_url {base_url!r} names a method; end it before /chat/completions")
    return stripped


def _parsed(response: Any) -> Generation:
    """The reply in a 200 response. What is not a reply is never turned into an empty one."""
    try:
        choice = response.json()["choices"][0]
        content = choice["message"]["content"]
        reason = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # A gateway's error page, or a body that was cut off.
        raise _Passing(
            f"a response that is no chat completion: {_excerpt(response.text)}"
        ) from error
    if not isinstance(content, str) or reason not in _FINISH:
        raise EngineError(
            f"the endpoint gave no reply (finish_reason {reason!r}): {_excerpt(response.text)}"
        )
    return Generation(content, _FINISH[reason])


def _seconds(retry_after: str | None) -> float | None:
    """The header as seconds; its other form, a date, is ignored."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 300 else line[:300] + "...")
