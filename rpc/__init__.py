"""The bus: topics, messages, and the bindings that carry them. A message is a wake-up, never the only copy of anything."""
