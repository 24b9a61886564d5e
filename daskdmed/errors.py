"""The errors of this library, under the name that users import: see `daskdmed.core.errors`."""

from daskdmed.core.errors import *  # noqa: F403
