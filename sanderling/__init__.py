"""Nouns and seams shared by every process; imports none of them."""
