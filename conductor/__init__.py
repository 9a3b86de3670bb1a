"""The work that spans nodes, done from durable operations."""
