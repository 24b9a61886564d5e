"""What is in the HTML of a notebook: its pictures, decoded."""

from __future__ import annotations

import base64
import re

import imagecodecs


def pictures(page: str) -> list:
    """Every picture in a page, (h, w, 3 or 4) uint8, or (h, w) where it is grey."""
    found = []
    for kind, code in re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', page):
        decode = imagecodecs.png_decode if kind == "png" else imagecodecs.jpeg8_decode
        found.append(decode(base64.b64decode(code)))
    return found
