"""From a request's texts to its predictions: admit, encode, queue, wait, post-process.

Runs on the event loop; encoding and post-processing run in a small thread pool, inference on the engine thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor

from q8core.errors import InputError
from q8core.tasks.classify import Encoded, FunctionToApply, encode_text, postprocess
from q8core.tasks.qa import Answer, Window, best_answers, encode_windows
from service import schemas
from service.batcher import BatchQueue, Lane, Ticket, WorkItem
from service.errors import (
    BadInput,
    ClientClosed,
    DeadlineExceeded,
    Draining,
    EmptyInput,
    EngineDead,
    InputTooLong,
    NotReady,
    QueueFull,
    UnknownBackend,
    UnknownTask,
)
from service.lifecycle import Lifecycle, State
from service.metrics import ServiceMetrics
from service.registry import Model, ModelRegistry
from service.settings import Settings
from service.trace import InFlight, RequestTrace

T = TypeVar("T")

DEFAULT_WINDOW = 384
_SMALLEST_ITEM = 2  # [CLS] [SEP]


@dataclass(frozen=True)
class _Encoded:
    """A request as sequences, with what its headers report."""

    items: list[WorkItem]
    truncated: int
    windows: int | None = None


class Pipeline:
    """Answers requests of all tasks; every way out of a request leads through `_run`."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        queue: BatchQueue,
        lifecycle: Lifecycle,
        metrics: ServiceMetrics,
    ) -> None:
        self.in_flight = InFlight()
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._encoding = 0
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="q8bert-text")

    def check_ready(self) -> None:
        """Raise NotReady, Draining or EngineDead unless requests are taken now."""
        state = self._lifecycle.state
        if state is State.READY:
            return
        if state in (State.DRAINING, State.STOPPED):
            raise Draining("the server is shutting down; send the request to another one")
        if state is State.FAILED:
            raise EngineDead("the engine has stopped; restart the server")
        raise NotReady(f"the server is {state.value}; GET /readyz says when it is ready")

    def close(self) -> None:
        """Stop the text threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def classify(
        self, request: schemas.ClassifyRequest, backend_header: str | None, trace: RequestTrace
    ) -> schemas.ClassifyResponse:
        """Classify every input of a request."""
        model = self._model("classify", request.backend, backend_header, trace)
        items = request.items()
        if not items:
            raise EmptyInput("inputs is an empty list; send at least one text")
        parameters = request.parameters or schemas.ClassifyParameters()
        function = parameters.function_to_apply or default_function(model)
        encode = partial(_encode_texts, model, items, parameters.truncation)

        def finish(_: _Encoded, logits: list[Tensor]) -> schemas.ClassifyResponse:
            rows = (postprocess(row, model.checkpoint.labels, function, parameters.top_k) for row in logits)
            return [[schemas.LabelScore(label=s.label, score=s.score) for s in row] for row in rows]

        return await self._run(trace, len(items), encode, finish)

    async def answer(
        self, request: schemas.QARequest, backend_header: str | None, trace: RequestTrace
    ) -> schemas.QAResponse:
        """Answer every question of a request."""
        model = self._model("qa", request.backend, backend_header, trace)
        items = request.items()
        if not items:
            raise EmptyInput("inputs is an empty list; send at least one question with its context")
        parameters = request.parameters or schemas.QAParameters()
        longest = model.checkpoint.config.max_position_embeddings
        window = parameters.max_seq_len or min(DEFAULT_WINDOW, model.checkpoint.max_length)
        if window > longest:
            raise BadInput(f"parameters.max_seq_len is {window}; the model takes at most {longest} tokens")
        windows: list[list[Window]] = []

        def encode() -> _Encoded:
            for place, item in enumerate(items):
                try:
                    windows.append(_windows_of(model, item, parameters, window))
                except InputError as error:
                    where = f"inputs[{place}]: " if isinstance(request.inputs, list) else ""
                    raise BadInput(f"{where}{error}") from error
            return _as_items(model, items, windows, parameters.max_question_len)

        def finish(_: _Encoded, logits: list[Tensor]) -> schemas.QAResponse:
            rest = iter(logits)
            found = [
                _answers(item, own, [next(rest) for _ in own], parameters)
                for item, own in zip(items, windows, strict=True)
            ]
            if isinstance(request.inputs, list):
                return [spans[0] for spans in found] if parameters.top_k == 1 else found
            return found[0][0] if parameters.top_k == 1 else found[0]

        return await self._run(trace, len(items), encode, finish)

    def _model(self, task: str, body: str | None, header: str | None, trace: RequestTrace) -> Model:
        """Choose model and backend and note both in the trace."""
        self.check_ready()
        model = self._registry.models.get(task)
        if model is None:
            raise UnknownTask(f"no checkpoint for {task} is loaded; loaded: {', '.join(self._registry.models)}")
        if body is not None and header is not None and body != header:
            raise BadInput(f"the body asks for backend {body!r}, the header x-q8bert-backend for {header!r}")
        backend = body or header or self._settings.chosen_default
        if backend not in self._registry.backends:
            raise UnknownBackend(f"unknown backend {backend!r}; loaded: {', '.join(self._registry.backends)}")
        trace.backend, trace.model = backend, model.name
        return model

    async def _run(
        self,
        trace: RequestTrace,
        inputs: int,
        encode: Callable[[], _Encoded],
        finish: Callable[[_Encoded, list[Tensor]], T],
    ) -> T:
        assert trace.task is not None  # only task paths come here
        lane = Lane(trace.task, trace.backend)
        deadline = trace.started + self._settings.request_timeout_s
        self._queue.check_room(lane, inputs * _SMALLEST_ITEM, deadline)
        if self._queue.waiting_requests() + self._encoding >= self._settings.max_queue_requests:
            raise QueueFull(f"{self._encoding} requests are being encoded already; try later")
        with self.in_flight.track(trace):
            self._encoding += 1
            try:
                with trace.stage("tokenize"):
                    encoded = await self._in_pool(trace, encode)
            finally:
                self._encoding -= 1
            self._note(trace, encoded)
            logits = await self._infer(lane, encoded.items, deadline, trace)
            with trace.stage("postprocess"):
                return await self._in_pool(trace, partial(finish, encoded, logits))

    async def _in_pool(self, trace: RequestTrace, work: Callable[[], T]) -> T:
        def unless_left() -> T:
            if trace.client_left:
                raise ClientClosed("the client left")
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, unless_left)

    def _note(self, trace: RequestTrace, encoded: _Encoded) -> None:
        trace.tokens = sum(item.tokens for item in encoded.items)
        trace.truncated, trace.windows = encoded.truncated, encoded.windows
        self._metrics.requests.input_tokens.labels(trace.backend).observe(trace.tokens)
        if encoded.windows is not None:
            self._metrics.requests.qa_windows.labels(trace.backend).observe(encoded.windows)

    async def _infer(self, lane: Lane, items: list[WorkItem], deadline: float, trace: RequestTrace) -> list[Tensor]:
        """Queue the sequences and wait: for the engine, the deadline or the client's leaving, whichever is first."""
        ticket = Ticket(lane, items, deadline)
        self._queue.put(ticket)
        loop = asyncio.get_running_loop()
        overdue = DeadlineExceeded(f"no answer within {self._settings.request_timeout_s:g} s (--request-timeout-s)")
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._queue.abandon, ticket, overdue)
        if trace.left is not None:
            trace.left.add_done_callback(
                lambda left: None if left.cancelled() else self._queue.abandon(ticket, ClientClosed("the client left"))
            )
        try:
            return await asyncio.wrap_future(ticket.future)
        finally:
            timer.cancel()
            self._queue.abandon(ticket, ClientClosed("the request was cancelled"))
            done = time.monotonic()
            started = ticket.started or done
            trace.stages["queue"] = started - ticket.submitted
            trace.stages["infer"] = done - started


def default_function(model: Model) -> FunctionToApply:
    """The function of the problem the model was trained for, as Hugging Face's pipeline chooses it."""
    problem = getattr(model.checkpoint.config, "problem_type", None)
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or len(model.checkpoint.labels) == 1:
        return "sigmoid"
    return "softmax"


def _encode_texts(model: Model, items: Sequence[tuple[str, str | None]], truncation: bool) -> _Encoded:
    limit = model.checkpoint.max_length
    encoded = [encode_text(model.tokenizer, text, pair, limit) for text, pair in items]
    if not truncation:
        for place, (one, (text, pair)) in enumerate(zip(encoded, items, strict=True)):
            if one.truncated:
                tokens = len(encode_text(model.tokenizer, text, pair, max_length=2**31).input_ids)
                raise InputTooLong(
                    f"inputs[{place}] has {tokens} tokens, the model takes at most {limit}; "
                    "shorten it or set parameters.truncation to true"
                )
    return _Encoded([_work_item(one) for one in encoded], sum(one.truncated for one in encoded))


def _work_item(encoded: Encoded | Window) -> WorkItem:
    return WorkItem(encoded.input_ids, encoded.token_type_ids)


def _windows_of(model: Model, item: schemas.QAInput, parameters: schemas.QAParameters, size: int) -> list[Window]:
    return encode_windows(
        model.tokenizer,
        item.question,
        item.context,
        max_seq_len=size,
        doc_stride=parameters.doc_stride,
        max_question_len=parameters.max_question_len,
    )


def _as_items(
    model: Model, items: Sequence[schemas.QAInput], windows: Sequence[Sequence[Window]], max_question_len: int
) -> _Encoded:
    truncated = 0
    for item, own in zip(items, windows, strict=True):
        if own[0].context_start - 2 == max_question_len:  # cut, or just fitting
            question = model.tokenizer.encode(item.question, add_special_tokens=False)
            truncated += len(question.ids) > max_question_len
    flat = [_work_item(window) for own in windows for window in own]
    return _Encoded(flat, truncated, len(flat))


def _answers(
    item: schemas.QAInput, windows: list[Window], logits: list[Tensor], parameters: schemas.QAParameters
) -> list[schemas.AnswerSpan]:
    found: list[Answer] = best_answers(
        windows,
        logits,
        item.context,
        top_k=parameters.top_k,
        max_answer_len=parameters.max_answer_len,
        handle_impossible=parameters.handle_impossible_answer,
        align_to_words=parameters.align_to_words,
    )
    spans = [schemas.AnswerSpan(answer=a.answer, score=a.score, start=a.start, end=a.end) for a in found]
    # no span may satisfy a very small max_answer_len; clients still expect one element
    return spans or [schemas.AnswerSpan(answer="", score=0.0, start=0, end=0)]
