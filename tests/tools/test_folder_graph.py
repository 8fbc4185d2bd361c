"""The drawing of folder dependencies: all arrows point down, and every name and arrow is drawn."""

from xml.etree import ElementTree

from tools.folder_graph import arrange, draw_graph

ARROWS = [("cli", "training"), ("cli", "weights"), ("training", "weights"), ("weights", "ops"), ("other", "ops")]


def test_arrows_lead_to_later_rows() -> None:
    rows = arrange(ARROWS)
    level = {name: i for i, row in enumerate(rows) for name in row}
    assert rows == [["cli"], ["training"], ["weights", "other"], ["ops"]]
    assert all(level[start] < level[end] for start, end in ARROWS)


def test_every_name_and_arrow_is_drawn() -> None:
    root = ElementTree.fromstring(draw_graph(ARROWS))
    assert sorted(element.text or "" for element in root.iter("text")) == ["cli", "ops", "other", "training", "weights"]
    assert len([path for path in root.iter("path") if "marker-end" in path.attrib]) == len(ARROWS)
