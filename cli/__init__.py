"""What a person types: a client over HTTP, and `sanderling up`."""
