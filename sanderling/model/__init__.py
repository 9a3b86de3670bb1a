"""The nouns: values, life cycles as tables, and pure decisions. No I/O."""
