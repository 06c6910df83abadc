from __future__ import annotations

import threading

import pytest
from fastapi.testclient import TestClient

from service.tasks.encoding import ClassifyWork, EncodedRequest


@pytest.mark.parametrize(
    ("inputs", "thread"),
    [
        (["good film"], None),
        (["good film " * 200], "q8bert-text"),
        ([""] * 50, "q8bert-text"),  # no characters, but work all the same
        (["good film " * 4000], "q8bert-long-text"),
        ([""] * 500, "q8bert-long-text"),
    ],
)
def test_only_what_takes_no_time_runs_on_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, inputs: list[str], thread: str | None
) -> None:
    ran_in: dict[str, str] = {}
    loop_thread: list[str] = []
    encode, answers, make = ClassifyWork.encode, ClassifyWork.answers, ClassifyWork.__init__

    def noted_init(self: ClassifyWork, *args: object) -> None:
        loop_thread.append(threading.current_thread().name)
        make(self, *args)  # type: ignore[arg-type]

    def noted_encode(self: ClassifyWork) -> EncodedRequest:
        ran_in["encode"] = threading.current_thread().name
        return encode(self)

    def noted_answers(self: ClassifyWork, logits: list[object]) -> object:
        ran_in["answers"] = threading.current_thread().name
        return answers(self, logits)  # type: ignore[arg-type]

    monkeypatch.setattr(ClassifyWork, "__init__", noted_init)
    monkeypatch.setattr(ClassifyWork, "encode", noted_encode)
    monkeypatch.setattr(ClassifyWork, "answers", noted_answers)
    assert client.post("/classify", json={"inputs": inputs}).status_code == 200
    expected = loop_thread[0] if thread is None else thread
    assert {name.rpartition("_")[0] if thread else name for name in ran_in.values()} == {expected}
    assert set(ran_in) == {"encode", "answers"}
