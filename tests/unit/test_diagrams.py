"""The pictures of life cycles in the documentation are those of the tables."""

from tests.diagrams import DRAWN, PAGE, fresh, places


def test_every_life_cycle_is_drawn_as_its_table_is_now() -> None:
    text = PAGE.read_text()
    assert sorted(places(text)) == sorted(DRAWN)
    assert text == fresh(text), "stale: make sample"


def test_a_diagram_that_differs_from_its_table_is_replaced() -> None:
    text = "before\n<!-- diagram: step -->\nold\n<!-- end of diagram -->\nafter\n"
    assert fresh(text) == f"before\n<!-- diagram: step -->\n```mermaid\n{DRAWN['step']}\n```\n<!-- end of diagram -->\nafter\n"
