"""The losses as pure functions, one a file, each with its paper and equation.

Rule for several ranks, the same for all: a loss returns this rank's share, whose mean over ranks is the loss of the global
batch, and gathers carry gradient. Then the ordinary average of parameter gradients (DDP, FSDP) is the exact gradient of
the global batch. Tensor names: B this rank's batch, N the global batch, D embedding, K prototypes, M masked patches.
"""
