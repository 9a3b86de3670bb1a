"""What the lab's proxy says instead of Consul: each lie is about what it is meant to be about, and of nothing else."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cli.lab.lies import INDEX, Past, invalid_session, set_back, stuck, too_large
from cli.lab.proxy import Answer, Request
from cli.lab.scenarios.agents import hot_loop


@dataclass
class Real:
    """Answers with what it holds at index 500, and remembers what it was asked."""

    holds: bytes = b"now"
    asked: list[str] = field(default_factory=list)

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request.target)
        return Answer(200, self.holds, {INDEX: "500"})


def read(target: str = "/v1/kv/a?recurse=1") -> Request:
    return Request("GET", target, {}, b"")


def write(*verbs: str) -> Request:
    steps = [{"KV": {"Verb": verb, "Key": "a", "Session": "s-1"}} for verb in verbs]
    return Request("PUT", "/v1/txn?consistent=1", {}, json.dumps(steps).encode())


@pytest.mark.parametrize("lie", [too_large, invalid_session], ids=["413", "invalid session"])
def test_refusals_of_writes_leave_reads_alone(lie: Callable[..., Answer]) -> None:
    real = Real()
    assert lie(read(), real).body == b"now"
    assert real.asked == ["/v1/kv/a?recurse=1"]


def test_a_transaction_is_called_too_large_and_not_made() -> None:
    real = Real()
    assert too_large(write("cas"), real).status == 413
    assert real.asked == []


def test_only_transactions_that_lock_are_told_of_an_invalid_session() -> None:
    real = Real()
    assert invalid_session(write("get-tree", "cas"), real).status == 200
    answer = invalid_session(write("cas", "lock"), real)
    assert (answer.status, len(real.asked)) == (409, 1)
    assert json.loads(answer.body)["Errors"] == [{"OpIndex": 1, "What": 'invalid session "s-1"'}]


def test_an_index_that_was_set_back_is_waited_for_as_such() -> None:
    real = Real()
    answer = set_back(100)(read("/v1/kv/a?recurse=1&index=400&wait=5000ms"), real)
    assert answer.head[INDEX] == "400"
    assert real.asked == ["/v1/kv/a?recurse=1&index=500&wait=5000ms"]


def test_a_stuck_index_is_one_in_every_answer() -> None:
    assert stuck(read(), Real()).head[INDEX] == "1"


def test_the_past_is_told_of_what_was_asked_before_and_of_nothing_else() -> None:
    real, past = Real(b"then"), Past()
    past(read(), real)
    real.holds = b"now"
    past.stand_still()
    past.end()  # so that nobody waits here
    assert past(read(), real).body == b"then"
    assert past(read("/v1/kv/a?recurse=1&index=500&wait=60000ms"), real).body == b"then", "nothing changes in the past"
    assert past(read("/v1/kv/b"), real).body == b"now"
    assert past(write("cas"), real).body == b"now"


def test_until_it_stands_still_it_is_the_present() -> None:
    real, past = Real(b"then"), Past()
    past(read(), real)
    real.holds = b"now"
    assert past(read(), real).body == b"now"


def test_only_what_was_asked_within_the_time_is_counted_for_a_hot_loop() -> None:
    often = [10.0 + number / 30 for number in range(61)]
    assert hot_loop(often, 10.0, 12.0, most_per_s=10.0) == "it asked 61 times in 2.0 s: a hot loop"
    assert hot_loop(often, 10.0, 12.0, most_per_s=31.0) is None
    assert hot_loop(often, 20.0, 22.0, most_per_s=10.0) is None
