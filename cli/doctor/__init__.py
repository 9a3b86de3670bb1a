"""`sanderling doctor`: looks at everything that this host's processes need, changes nothing of it, and says what to mend."""
