"""Models, below every op that runs one: which families there are, where weights lie, how they load, and what they run on.

`registry` knows the families, `checkpoint` finds a spec's weights, `device` picks the device, `runtime` the fastest faithful
runtime on it, `catalogue` tells of all that. Importing this package imports no model library.
"""
