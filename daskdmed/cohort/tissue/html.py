"""The tissue of a slide on the slide's own picture in a notebook.

Not covered: the picture and the table of a slide (`daskdmed.images.html`), which asks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskdmed.cohort.tissue.cache import latest
from daskdmed.cohort.tissue.picture import outlined, share_text
from daskdmed.core.types import Array

if TYPE_CHECKING:
    from daskdmed.images.slide import Slide


def slide_overlay(slide: Slide, picture: Array) -> tuple[Array, str] | None:
    """What a slide's own picture shows of its tissue, when a mask was made before.

    Nothing is computed: None when there is no mask in the cache.
    """
    mask = latest(slide.token)
    if mask is None or mask.ndim != 2:
        return None
    return outlined(picture, mask.data), f"tissue {share_text(mask)} ({mask.method})"
