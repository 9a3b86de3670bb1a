"""Which rule is told of which event, and which URLs a receiver may have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leader import courier
from sanderling import receivers
from sanderling.errors import InvalidInput
from sanderling.model.notifications import PATTERN, TEST, is_meant, is_severe, matches
from sanderling.settings import General, Notifications, Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("pattern", "kind", "fits"),
    [
        ("disk.failed", "disk.failed", True),
        ("disk.failed", "disk.failed_again", False),
        ("disk.failed", "diskxfailed", False),
        ("disk.*", "disk.failed", True),
        ("*.failed", "operation.failed", True),
        ("*.failed", "operation.failed.twice", False),
        ("*", "alert.gap", True),
        ("a*t.gap", "alert.gap", True),
        ("alert.*", "alert", False),
    ],
)
def test_a_star_in_a_pattern_stands_for_any_text(pattern: str, kind: str, fits: bool) -> None:
    assert matches(pattern, kind) is fits
    assert PATTERN.fullmatch(pattern)


def test_a_test_message_is_for_its_own_rule_and_nobody_is_told_of_what_notification_does() -> None:
    assert is_meant(["disk.failed"], "mine", kind=TEST, resource_id="mine")
    assert not is_meant(["*"], "mine", kind=TEST, resource_id="other")
    assert not is_meant(["*", "notification.given_up"], "mine", kind="notification.given_up", resource_id="mine")


def test_what_is_bad_is_told_as_bad() -> None:
    assert is_severe("alert.gap")
    assert is_severe("operation.failed")
    assert not is_severe("operation.succeeded")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("jsons://user:pw@hooks.example:8443/secret/path?+X-Key=secret", "jsons://hooks.example:8443"),
        ("json://10.0.0.9/hook", "json://10.0.0.9"),
        ("mailtos://me:pw@mail.example?to=you@mail.example", "mailtos://mail.example:587"),
        ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops", "slack://…"),
    ],
)
def test_a_receiver_is_named_without_what_is_secret(url: str, shown: str) -> None:
    assert receivers.check(url, Notifications()) == shown


@pytest.mark.parametrize(
    "url",
    [
        "json://127.0.0.1/x",
        "json://127.1.2.3:8500/v1/kv",
        "json://localhost/",
        "json://0.0.0.0/",
        "json://[::1]/",
        "json://[::]/",
        "json://[::ffff:127.0.0.1]/",
        "json://[64:ff9b::7f00:1]/",
        "json://[2002:7f00:1::]/",
        "jsons://169.254.169.254/latest/meta-data",
        "json://[fe80::1]/",
        "json://[fd00:ec2::254]/",
        "json://224.0.0.1/",
        "mailto://a:b@mail.example?smtp=127.0.0.1",
    ],
)
def test_a_receiver_on_this_host_or_its_link_is_refused_unless_the_settings_allow_it(url: str) -> None:
    with pytest.raises(InvalidInput, match="this host or its link"):
        receivers.check(url, Notifications())
    assert receivers.check(url, Notifications(loopback="on"))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("file:///etc/passwd", "kind of receiver"),
        ("dbus://", "kind of receiver"),
        ("syslog://", "kind of receiver"),
        ("", "no kind of receiver"),
        ("json", "no kind of receiver"),
        ("json://h/\n", "no kind of receiver"),
        ("json://", "not a URL that apprise understands"),
        ("json://u:hidden@[::1", "not a URL"),
        ("json://u:hidden@[h]/", "not a URL"),
        ("json://u:hidden@host:99999999/", "port"),
        ("json://u:hidden@host:65536/", "port"),
        ("json://u:hidden@host:0/", "port"),
        ("jsons://h/?verify=no", "option verify"),
        ("json://h/?redirect=yes", "option redirect"),
        ("json://h/?rto=99999", "option rto"),
        ("mailto://a:b@mail.example?pgppub=/etc/shadow", "option pgppub"),
        ("mailto://a:b@mail.example?to=x@y.example,z@y.example", "several receivers"),
    ],
)
def test_a_url_that_could_do_more_than_tell_one_receiver_is_refused(url: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule) as refused:
        receivers.check(url, Notifications())
    assert "hidden" not in str(refused.value.context) + refused.value.detail


def test_only_the_kinds_of_receivers_that_the_settings_name_are_allowed() -> None:
    assert receivers.check("json://h.example/", Notifications(schemas=" json ,mailto"))
    with pytest.raises(InvalidInput, match="jsons kind"):
        receivers.check("jsons://h.example/", Notifications(schemas="json"))


def test_a_courier_logs_as_the_leader_does_where_no_answer_is_expected_and_nothing_of_a_receivers_url() -> None:
    program = """
import logging, structlog
from leader import courier
courier.main()
structlog.get_logger().warning("ours")
logging.getLogger("a.library").warning("theirs")
logging.getLogger("urllib3.connection").warning("Failed to parse headers (url=https://h/canary)")
"""
    configured = Settings(sanderling=General(node="n7"))
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=f"{courier.told(configured)}\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout == ""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["ours", "theirs"]
    assert {(line["process"], line["node"]) for line in lines} == {("courier", "n7")}
