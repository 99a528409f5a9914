"""Pictures are those the code draws, and the docs name tests that exist."""

import ast
import re
import sys
from html import escape
from pathlib import Path

import pytest

from penstock.kvtransfer.moves import HOLDER_MOVES, READER_MOVES, Event

ROOT = Path(__file__).resolve().parent.parent.parent
NAMED = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
PROMISES = [f"F{number}" for number in range(1, 15)]


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import draw  # type: ignore[import-not-found]

    yield draw
    for name in ("draw", "shapes", "moves_picture", "speed_picture"):
        sys.modules.pop(name, None)


def test_the_pictures_are_current(draw, capsys):
    assert draw.main(["--check"]) == 0, capsys.readouterr().out


def test_a_picture_that_is_not_current_is_named(draw, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(draw, "HERE", tmp_path)
    assert draw.main(["--check"]) == 1
    assert "docs/moves.svg is not what" in capsys.readouterr().out
    assert draw.main([]) == draw.main(["--check"]) == 0


def test_every_row_of_the_table_of_moves_is_drawn(draw):
    picture = draw.moves()
    for table in (HOLDER_MOVES, READER_MOVES):
        for (state, event), after in table.items():
            assert f">{escape(event.value)}<" in picture
            assert f">{state.value}<" in picture and f">{after.value}<" in picture
    rows = len(HOLDER_MOVES) + len(READER_MOVES)
    assert sum(picture.count(f">{escape(event.value)}<") for event in Event) == rows


def test_a_state_without_a_place_cannot_be_drawn_by_accident(draw, monkeypatch):
    import moves_picture  # type: ignore[import-not-found]

    ways = dict(moves_picture.WAYS)
    monkeypatch.setattr(moves_picture, "WAYS", {})
    with pytest.raises(KeyError):
        draw.moves()
    assert len(ways) == 7


def test_speeds_are_drawn_for_what_was_measured(draw):
    shm = {"part": "speed", "method": "shm", "bytes": 1 << 24}
    records = [
        {**shm, "way": "alone", "page_bytes": 4096, "seconds": [0.01, 0.02, 0.03]},
        {**shm, "way": "alone", "page_bytes": 65536, "seconds": [0.002]},
        {**shm, "way": "whole", "page_bytes": 4096, "seconds": [0.03]},
        {**shm, "way": "whole", "page_bytes": 65536, "seconds": [0.004]},
        {**shm, "part": "large", "way": "alone", "page_bytes": 65536, "seconds": [0.1]},
    ]
    picture = draw.speeds(records)
    assert picture.count("<polyline") == 2  # alone and whole; nothing over TCP was measured
    assert "Within one host" in picture and "Over TCP" not in picture
    assert ">4K<" in picture and ">64K<" in picture


def test_the_handover_page_names_only_tests_that_are_there():
    text = (ROOT / "docs" / "handover.md").read_text()
    named = NAMED.findall(text)
    assert len(named) > 20
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not test or test in functions, f"{file} has no {test}"


def test_every_file_the_page_points_to_is_there():
    text = (ROOT / "docs" / "handover.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_every_promise_has_a_row_with_a_number_and_a_test():
    text = (ROOT / "docs" / "handover.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| F\d+ ", line)]
    assert [row[1].strip() for row in rows] == PROMISES
    for row in rows:
        cells = [cell.strip() for cell in row[1:-1]]
        assert all(cells), f"{cells[0]} has an empty cell"
        assert any(test for _, test in NAMED.findall(row[4])), f"{cells[0]} names no test"
