"""docs/operations.md, typed as it stands on three hosts with systemd: `make hosts`.

One test, because each section stands on the ones before it. From the first disk on an initiator writes without a pause, through
restore, upgrade, the loss of a host, rotation and maintenance; no write may be lost or refused.
"""

from pathlib import Path

import pytest

from tests.hosts.guide import Step, steps
from tests.hosts.site import Site

_ON_A_NEW_HOST = ("1.", "2.", "3.", "4.", "5.", "6.", "8.", "Securing it")

_NOBODY_WITHOUT_A_CERTIFICATE = """\
ss -Hltn | grep ':5671 '
ss -Hltn | grep ':8501 '
refused() { ! "$@" || exit 1; }
refused grep -E ':(5672|8500) ' <<<"$(ss -Hltn)"
refused curl -s --cacert /etc/sanderling/tls/ca.crt https://10.0.0.11:8080/healthz
refused curl -s --cacert /etc/sanderling/tls/ca.crt https://127.0.0.1:8501/v1/status/leader
refused openssl s_client -CAfile /etc/sanderling/tls/ca.crt -verify_return_error -connect 127.0.0.1:5671 -tls1_2 </dev/null
"""


@pytest.mark.timeout(3600)
def test_the_operations_guide_works_as_it_is_typed(tmp_path: Path) -> None:
    told = steps()
    site = Site(tmp_path)
    try:
        site.start()
        for number, step in enumerate(told):
            _before(site, step, told[:number])
            print(f"[{number}] {step}", flush=True)  # noqa: T201  a run takes a quarter of an hour
            _after(site, step, site.do(step))
        written = site.written()
        print(f"{written['writes']} writes, longest waits {written['longest_s'][:5]} s")  # noqa: T201
    finally:
        site.stop()
    for step in told:
        if step.note and not step.note.startswith("when:") and not step.hosts:
            print(f"not run: {step}: {step.note}")  # noqa: T201
    print(f"{sum(bool(step.hosts) for step in told)} steps run, {sum(not step.hosts for step in told)} not")  # noqa: T201


def _before(site: Site, step: Step, done: list[Step]) -> None:
    if step.section == "Upgrade" and done[-1].section != "Upgrade":
        site.release()
    if step.note == "when: san2 is gone":
        site.lose("san2")
    if step.note == "when: san2 is new":
        site.renew("san2")
        for earlier in done:
            if earlier.section.startswith(_ON_A_NEW_HOST):
                site.do(earlier, only="san2")


def _after(site: Site, step: Step, printed: str) -> None:
    if step.text.startswith("sanderling doctor") and step.section == "Securing it":
        site.do(Step("type", "", step.hosts, _NOBODY_WITHOUT_A_CERTIFICATE))
    if "sanderling doctor" in step.text and step.section.startswith("PostgreSQL"):
        assert "postgresql+psycopg://" in printed, printed
    if "sanderling notification test" in step.text:
        site.notified()
    if step.text.startswith("sanderling subnet create front-a"):
        site.write()
    if step.section in ("Upgrade", "Replace a node"):
        site.writing()
    if step.section == "Rotate tokens":
        assert site.ask("disk list"), "no disk is left"
