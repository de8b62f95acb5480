"""The pocket models: small ones of our own that ship with the package, so that no network is needed to see, find and follow.

Each is a directory in its library's own format under `weights/`, with its card (README.md): trained on `vfm_ops.world` by
`python -m jobs.pocket NAME`.
"""
