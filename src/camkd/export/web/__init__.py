"""A page that runs an exported model in the visitor's browser, and nothing anywhere else."""
