"""Which big chunks are in memory, and when.

A pure, seeded plan (`plan`, `policy`, `blockgrid`, `budget`, `randomness`), the dataset that
it is made for (`catalogue`), and the scheduler that enacts it with futures (`resident`,
`reading`, `cluster`). Knows nothing of crops and batches: those are `daskdmed.loading`.
"""
