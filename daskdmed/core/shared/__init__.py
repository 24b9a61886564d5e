"""Memory that several processes of one machine see: written by one, read by many.

`segments` is the side of the process that owns the memory, `mapping` that of those who read.
Nothing here has a name that could outlive its processes, where the system allows that: memory
is a file without a name (``memfd_create``), which others reach through its owner's table of
open files, and which is gone with the last process that has it.

Who reads an array holds a shared lock on its file, and the owner writes anew only into files
that it can lock for itself: pixels that somebody crops from are never overwritten, whatever
becomes of the tasks that they belong to. The kernel takes locks from processes that die.

Not covered: who asks whom for what (`daskdmed.persistence.sharing`).
"""
