"""HTTP in, operations out: stateless, and knows no driver and no lock."""
