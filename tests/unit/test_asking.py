"""Questions inside a request: asked again only when the answer is old."""

from api.asking import Asked
from sanderling.clock import ManualClock


class Counter:
    asked = 0

    def count(self) -> int:
        self.asked += 1
        return self.asked


def count(counter: Counter) -> int:
    return counter.count()


def test_an_answer_is_given_again_until_it_is_old() -> None:
    clock = ManualClock()
    asked = Asked("counter", Counter(), timeout_s=5.0, clock=clock)
    assert [asked.lately(count, within_s=5.0) for _ in range(3)] == [1, 1, 1]
    clock.advance(4.9)
    assert asked.lately(count, within_s=5.0) == 1
    clock.advance(0.1)
    assert [asked.lately(count, within_s=5.0) for _ in range(2)] == [2, 2]
    assert [asked.lately(count, within_s=0.0) for _ in range(2)] == [3, 4]
