"""Files behind URLs, read by ranges.

Ranges of neighbours are joined into few requests that are in flight together, what fails for a
while is tried again, every answer is checked for being of the file that was opened, and blocks
that were fetched are kept for all readers of the process.

    settings   what ``dask.config`` says under ``daskdmed.images.remote``
    retry      which failures pass, how long to wait, and the error in the end
    objects    one range of one file: over HTTP, from S3, from any file system of fsspec
    blocks     the cache, in which no two threads fetch the same block
    source     the bytes of a file, as the parsers and decoders read them
    counting   requests and bytes, for whoever measures
    stores     the same for Zarr

Not covered: where a URL leads and what its file system is told (`daskdmed.core.places`).
"""
