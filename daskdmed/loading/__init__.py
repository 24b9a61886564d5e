"""Small chunks from resident big chunks, and batches from small chunks.

`lightdl` is what users hold, on `loader` (what all loaders share) and `prefetch` (the thread
behind it); `assembly` puts together what batches are made from; `engine` turns the plan's
draws into batches, `local` by reference and `remote` next to the data; `sampling` crops;
`collectors` is where users say what is cropped. Only `lightdl` and `torchbridge` need torch:
workers import none of it.
"""
