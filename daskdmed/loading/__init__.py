"""Small chunks from resident big chunks, and batches from small chunks.

`lightdl` is what users hold, on `loader` (what all loaders share) and `prefetch` (the thread
behind it); `assembly` puts together what batches are made from; `engine` turns the plan's
draws into batches, `local` by reference and `remote` next to the data; `sampling` crops;
`collectors` is where users say what is cropped. `torchbridge` makes tensors of batches, `delivery`
brings them to a device, `ondevice` keeps big chunks there, in an `arena`. These and the loaders
need torch: workers import none of it.
"""
