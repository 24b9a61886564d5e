"""The fuzz campaign: damaged files end in right pixels or a typed error, in bounded resources.

`seeds` are sound files of every kind, `mutations` damage them, `judge` says what became of one,
`campaign` runs many in processes that are watched. ``python -m tests.fuzz --help``; what is
promised stands in docs/design/bad-input.md.
"""
