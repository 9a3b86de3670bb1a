"""Leader election, and the service with the duties that only a leader has."""
