"""Measures birnn_ext against torch.nn and other libraries: `python -m benchmarks.run` from the root of the
repository.

    shapes      what is measured: the grid of shapes, one case of it
    problem     the numbers of one case: weights, inputs, lengths
    contenders  who competes: birnn_ext and torch.nn; peers/: oneDNN, ONNX Runtime, OpenVINO, JAX
    check       nobody is timed before being right
    machine     what the machine is, how fast it is right now, and the floor that follows
    run, plot, table, compare, demo    the commands
    variants, growth    two more: what each variant costs, and how the cost grows with T, B and layers
    gpu         the command for a machine with a GPU: builds, tests and measures there; gpu_cases: what and how

How time is taken, and the statistics of it: birnn_ext/clock.py. Not installed with the package.
"""
