"""What a candidate for leadership measures of itself."""

from prometheus_client import Counter, Gauge

LEADS = Gauge("sanderling_leader_leads", "1 while this candidate can prove that it leads", ["service"])
TERM = Gauge("sanderling_leader_term", "The highest term that this candidate has seen", ["service"])
BEGUN = Counter("sanderling_leader_terms_begun", "Terms that this candidate has begun", ["service"])
FAILED = Counter("sanderling_leader_turns_failed", "Looks at the leader key that failed, by why", ["service", "why"])
