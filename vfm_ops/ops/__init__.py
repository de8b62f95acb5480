"""The built-in ops, one file each: its settings, what it needs and adds. `vfm_ops.op_registry` finds them by their names."""
