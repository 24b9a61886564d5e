"""What a result looks like in a notebook."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from daskdmed.store import open_heatmap
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.html import coloured
from tests.shown import pictures

PLACE = Georeference((4, 4), (2, 2), (2.0, 2.0))
VALUES = np.linspace(0, 1, 6 * 8, dtype="f4").reshape(6, 8)


def test_values_in_colours_and_none_where_there_is_none():
    values = VALUES.copy()
    values[2, 3] = np.nan
    heatmap = open_heatmap(values, PLACE)
    page = heatmap._repr_html_()
    (picture,) = pictures(page)
    assert picture.shape == (6, 8, 4)
    assert picture[0, 0].tolist() == [0, 0, 4, 255]
    assert picture[-1, -1].tolist() == [252, 253, 191, 255]
    assert picture[2, 3, 3] == 0
    assert (picture[..., 3] == 0).sum() == 1
    assert "0 to 1" in page
    assert repr(heatmap) == "<Heatmap: 6 x 8 windows, float32>"


def test_the_colours_are_those_of_matplotlib():
    magma = pytest.importorskip("matplotlib").colormaps["magma"]
    own = coloured(np.linspace(0, 1, 64)[None])[0, :, :3].astype(int)
    wanted = magma(np.linspace(0, 1, 64), bytes=True)[:, :3].astype(int)
    assert np.abs(own - wanted).max() < 25


def test_of_many_channels_the_first():
    heatmap = open_heatmap(np.stack([VALUES * k for k in range(6)]), PLACE)
    page = heatmap._repr_html_()
    assert len(pictures(page)) == 4
    assert "6, float32" in page
    assert "3: 0 to 3" in page
    assert repr(heatmap) == "<Heatmap: 6 x 6 x 8 windows, float32>"


def test_nothing_is_computed_and_nothing_large_read():
    lazy = open_heatmap(da.from_array(VALUES, chunks=3) + 1, PLACE)
    assert not pictures(lazy._repr_html_())
    large = open_heatmap(np.broadcast_to(np.float32(1), (3000, 3000)), PLACE)
    assert not pictures(large._repr_html_())
    assert "3,000 x 3,000" in large._repr_html_()
    empty = open_heatmap(np.full((2, 3), np.nan), PLACE)._repr_html_()
    assert "no values" in empty
