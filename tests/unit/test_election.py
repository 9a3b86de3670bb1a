"""The decision of a candidate, on what it sees and the time."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from leader.election import Act, Standing, View, decide
from sanderling import settings
from sanderling.coordination.base import Entry
from sanderling.model.leaders import Leader, leader_key

BOUNDS = settings.Leader()
HANDOVER_S = BOUNDS.lease_s + BOUNDS.duty_stop_timeout_s
KEY = leader_key("cluster")
LAST = Leader(node="b", term=7, since=datetime(2026, 1, 1, tzinfo=UTC))


def view(*, locked_by: str | None = None, value: Leader | None = LAST, **changes: object) -> View:
    entry = Entry(KEY, value.to_value(), 5, locked_by) if value else None
    seen = View(entry, 100.0, "mine", Standing.FOLLOWS, value.term if value else 0, 1_800_000_000.5)
    return replace(seen, **changes)  # type: ignore[arg-type]


@pytest.mark.rows("LE-8")
def test_a_free_key_is_taken_once_the_last_leader_must_have_stopped() -> None:
    assert decide(view(), 100.0 + HANDOVER_S - 0.01, BOUNDS).act is not Act.CAMPAIGN
    assert decide(view(), 100.0 + HANDOVER_S, BOUNDS).act is Act.CAMPAIGN


def test_while_it_waits_a_candidate_looks_again_just_when_the_wait_ends() -> None:
    assert decide(view(), 100.0 + HANDOVER_S - 0.25, BOUNDS).look_s == pytest.approx(0.25)


def test_a_key_that_was_left_in_order_is_taken_at_once() -> None:
    assert decide(view(value=LAST.model_copy(update={"left": True})), 100.0, BOUNDS).act is Act.CAMPAIGN


@pytest.mark.rows("LE-12")
def test_a_missing_key_is_waited_for_as_one_that_was_lost() -> None:
    assert decide(view(value=None), 100.0 + HANDOVER_S - 0.01, BOUNDS).act is not Act.CAMPAIGN
    assert decide(view(value=None), 100.0 + HANDOVER_S, BOUNDS).act is Act.CAMPAIGN


def test_a_new_term_is_higher_than_any_that_was_seen() -> None:
    later = 100.0 + HANDOVER_S
    assert decide(view(), later, BOUNDS).term == 8
    assert decide(view(term_seen=40), later, BOUNDS).term == 41


def test_terms_go_on_growing_when_the_store_forgot_them() -> None:
    later = 100.0 + HANDOVER_S
    assert decide(view(value=None), later, BOUNDS).term == 1_800_000_000
    assert decide(view(value=None, term_seen=1_900_000_000), later, BOUNDS).term == 1_900_000_001


def test_a_value_that_cannot_be_read_is_a_lost_one() -> None:
    spoilt = replace(view(), entry=Entry(KEY, b"spoilt", 5, None))
    assert decide(spoilt, 100.0 + HANDOVER_S, BOUNDS).term == 1_800_000_000


@pytest.mark.rows("LE-1", "LE-6")
def test_while_another_leads_a_candidate_waits_without_a_session() -> None:
    assert decide(view(locked_by="theirs"), 1000.0, BOUNDS).act is Act.REST
    resting = decide(view(locked_by="theirs", consul_session=None), 1000.0, BOUNDS)
    assert (resting.act, resting.look_s) == (Act.WAIT, BOUNDS.watch_timeout_s)


@pytest.mark.rows("W-LE-9")
def test_who_stepped_down_does_not_stand_again_for_a_while() -> None:
    paused = view(value=LAST.model_copy(update={"left": True}), consul_session=None, stands_from=102.0)
    assert decide(paused, 101.9, BOUNDS).act is Act.WAIT
    assert decide(paused, 102.0, BOUNDS).act is Act.CAMPAIGN


def test_who_stepped_down_but_could_not_let_go_gives_its_session_back() -> None:
    assert decide(view(locked_by="mine", stands_from=102.0), 101.0, BOUNDS).act is Act.REST


@pytest.mark.rows("LE-11")
def test_a_leader_that_has_the_key_goes_on() -> None:
    assert decide(view(locked_by="mine", standing=Standing.LEADS), 100.0, BOUNDS).act is Act.GO_ON


@pytest.mark.rows("LE-9", "LE-10")
@pytest.mark.parametrize("locked_by", [None, "theirs"])
@pytest.mark.parametrize("stopping", [False, True])
def test_a_leader_without_the_key_is_demoted(locked_by: str | None, stopping: bool) -> None:
    lost = view(locked_by=locked_by, standing=Standing.LEADS, stopping=stopping)
    assert decide(lost, 100.0, BOUNDS).act is Act.DEMOTE


def test_a_leader_whose_key_was_deleted_is_demoted() -> None:
    assert decide(view(value=None, standing=Standing.LEADS), 100.0, BOUNDS).act is Act.DEMOTE


@pytest.mark.rows("LE-17")
def test_a_leader_that_should_not_lead_resigns() -> None:
    leading = view(locked_by="mine", standing=Standing.LEADS)
    unwilling = (
        replace(leading, stopping=True),
        replace(leading, asked_to_step_down=True),
        replace(leading, standing=Standing.FAILED),
    )
    assert [decide(seen, 100.0, BOUNDS).act for seen in unwilling] == [Act.RESIGN] * 3


def test_a_leader_whose_lease_ran_out_wins_its_own_lock_anew_with_a_new_term() -> None:
    assert decide(view(locked_by="mine", standing=Standing.OVER), 100.0, BOUNDS).act is Act.DEMOTE
    anew = decide(view(locked_by="mine"), 100.0, BOUNDS)
    assert (anew.act, anew.term) == (Act.CAMPAIGN, 8)


def test_a_candidate_that_is_told_to_stop_ends() -> None:
    assert decide(view(stopping=True), 1000.0, BOUNDS).act is Act.END


def test_who_died_as_the_leader_lets_the_others_stand_first() -> None:
    died = view(node=LAST.node, seen_since=100.0)
    assert decide(died, 100.0 + HANDOVER_S + BOUNDS.candidacy_pause_s - 0.01, BOUNDS).act is not Act.CAMPAIGN
    assert decide(died, 100.0 + HANDOVER_S + BOUNDS.candidacy_pause_s, BOUNDS).act is Act.CAMPAIGN
    assert decide(replace(died, node="another"), 100.0 + HANDOVER_S, BOUNDS).act is Act.CAMPAIGN
