"""Where windows and blocks lie: pure geometry, with a proof that each pixel is met once.

Not covered: reading them (`daskdmed.images`) and running models over them
(`daskdmed.inference`).
"""
