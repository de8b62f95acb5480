"""What `ray job submit` runs, one module a job; and the command line, which is a thin face on them."""
