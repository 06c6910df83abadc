"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx

from service.client import calls
from service.client.calls import Call, ClassifyOptions, QAOptions, Text, Variants
from service.client.results import Answer, Classification, Comparison, Info, parse
from service.client.retries import Attempts, Retry, operation_limits, too_slow

T = TypeVar("T")


class AsyncClient:
    """Asks a q8bert service; keeps its connections open, and belongs to one event loop.

    Every method raises `ClientError` if all attempts fail. ``model`` is the name of a loaded model of the task, as
    `info` lists them; None: the server's default for the task.

    Args:
        url: the service's address, such as ``http://127.0.0.1:8000``.
        api_key: sent as ``Authorization: Bearer``.
        backend: for requests that name none; None: the server's default.
        timeout_s: longest time for one attempt, from connecting to the answer's last byte.
        retry: when and how often to try again.
        transport: httpx's transport, for tests and proxies.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        backend: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=calls.headers(api_key), transport=transport)
        self._backend = backend
        self._timeout_s = timeout_s
        self._retry = retry or Retry()

    async def classify(
        self, text: Text, *, backend: str | None = None, model: str | None = None, **options: Unpack[ClassifyOptions]
    ) -> Classification:
        """Classify a text, or a pair of texts as a tuple."""
        return await self._call(calls.classify(text, backend or self._backend, model, options))

    async def classify_batch(
        self,
        texts: Sequence[Text],
        *,
        backend: str | None = None,
        model: str | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> list[Classification]:
        """Classify several texts or pairs in one request."""
        return await self._call(calls.classify_batch(texts, backend or self._backend, model, options))

    async def qa(
        self,
        question: str,
        context: str,
        *,
        backend: str | None = None,
        model: str | None = None,
        **options: Unpack[QAOptions],
    ) -> Answer:
        """Find the answer to a question in a context of any length."""
        return await self._call(calls.qa(question, context, backend or self._backend, model, options))

    async def qa_top(
        self,
        question: str,
        context: str,
        top_k: int,
        *,
        backend: str | None = None,
        model: str | None = None,
        **options: Unpack[QAOptions],
    ) -> list[Answer]:
        """Find up to ``top_k`` answers, best first."""
        return await self._call(calls.qa_top(question, context, top_k, backend or self._backend, model, options))

    async def qa_batch(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        backend: str | None = None,
        model: str | None = None,
        **options: Unpack[QAOptions],
    ) -> list[Answer]:
        """Find the answer to each ``(question, context)`` in one request."""
        return await self._call(calls.qa_batch(pairs, backend or self._backend, model, options))

    async def compare(
        self, text: str, *, model: str | None = None, variants: Variants | None = None
    ) -> Comparison[Classification]:
        """Classify a text on both fp32 and int8, or on two variants (``MODEL@BACKEND``)."""
        return await self._call(calls.compare(text, model, variants))

    async def compare_qa(
        self, question: str, context: str, *, model: str | None = None, variants: Variants | None = None
    ) -> Comparison[Answer]:
        """Answer a question on both fp32 and int8, or on two variants (``MODEL@BACKEND``)."""
        return await self._call(calls.compare_qa(question, context, model, variants))

    async def info(self) -> Info:
        """Ask what is loaded and how it runs."""
        return await self._call(calls.info())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _call(self, call: Call[T]) -> T:
        attempts = Attempts(self._retry)
        while True:
            try:
                response = await self._send(call, attempts.begin(self._timeout_s))
            except httpx.TransportError as error:
                pause = attempts.after_failure(error)
            else:
                if response.is_success:
                    return parse(response, call.build)
                pause = attempts.after_answer(response)
            await asyncio.sleep(pause)

    async def _send(self, call: Call[Any], limit_s: float) -> httpx.Response:
        """Make one attempt.

        Raises:
            httpx.TransportError: no answer, or not all of it within the limit.
        """
        timeout = operation_limits(limit_s)
        try:
            async with asyncio.timeout(limit_s):  # httpx's limits restart with every byte
                return await self._http.request(call.method, call.path, json=call.body, timeout=timeout)
        except TimeoutError as error:
            raise too_slow(limit_s) from error
