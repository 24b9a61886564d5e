"""Every window of a cohort once, in order, as batches: `SlidingWindowDL`."""
