"""Standing back because of a verdict, and for how long: what comes and goes must not make paths come and go with it."""

from dataclasses import dataclass, replace
from typing import Final

VERDICTS_LEAST: Final = 2  # in a row: what peers say of themselves may be as old as their last turn


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether this node stands back: begun after verdicts in a row, ended a while after the last one.

    The while doubles each time the node is cut off again soon after.
    """

    cut_off: bool = False
    verdicts: int = 0
    until: float = 0.0
    hold_s: float = 0.0

    def after(self, verdict: bool, *, now: float, hold_s: float, hold_most_s: float) -> "Standing":
        """The standing once this verdict has been heard; `hold_s` is the while, `hold_most_s` the longest that it grows to."""
        if not verdict:
            return replace(self, verdicts=0, cut_off=self.cut_off and now < self.until)
        known = replace(self, verdicts=self.verdicts + 1)
        if not self.cut_off:
            if known.verdicts < VERDICTS_LEAST:
                return known
            again = self.hold_s > 0 and now - self.until < hold_most_s
            known = replace(known, cut_off=True, hold_s=min(2 * self.hold_s, hold_most_s) if again else hold_s)
        return replace(known, until=now + known.hold_s)
