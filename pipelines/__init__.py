"""Ray Data graphs: which ops, in which order, on which resources; and the lake that they write."""
