"""Tables and text in a notebook."""

from __future__ import annotations

from daskdmed.core.html import Html, bar, facts, file_name, join, page, safe, table, title
from daskdmed.core.told import Told
from daskdmed.explorers import GridExplorer
from daskdmed.policies import EachOnce, LeastVisitedFirst, Weighted


def test_everything_is_escaped_but_html():
    odd = "<a href='x'>&\""
    escaped = "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"
    for made in (
        safe(odd), title(odd), title("x", odd), table([odd], []), table([], [[odd]]),
        facts([(odd, 1)]), facts([(1, odd)]), join([odd]), file_name(odd), page(odd),
    ):  # fmt: skip
        assert odd not in made
        assert escaped in made or escaped.rpartition("x&#x27;&gt;")[2] in made
    assert safe(Html("<b>")) == "<b>"
    assert "<b>" in table([], [[Html("<b>")]])


def test_numbers_are_aligned_and_absent_ones_left_out():
    assert '<td class="dkm-n">1,234</td><td>1234</td>' in table(["a", "b"], [(1234, "1234")])
    assert "gone" not in facts([("gone", None), ("there", 0)])
    assert "width:100.0%" in bar(7)
    assert "width:0.0%" in bar(-1)
    assert file_name("/a/b.svs") == '<span title="/a/b.svs">b.svs</span>'


def test_objects_say_how_they_were_made():
    class Odd(Told):
        def __init__(self):
            self.size, self._hidden = 3, 4

    assert repr(Odd()) == "Odd(size=3)"
    assert repr(LeastVisitedFirst()) == "LeastVisitedFirst()"
    assert repr(EachOnce((1, 8, 8))) == "EachOnce(passes=1, stride=(1, 8, 8), edge='shift')"
    assert repr(GridExplorer(64)) == "GridExplorer(size=64, regions=1, overlap=0.0)"
    assert len(repr(Weighted({f"p{i}": 1.0 for i in range(1000)}))) < 200
