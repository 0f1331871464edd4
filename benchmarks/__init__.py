"""The measured comparisons: one command for each table; see README.md."""
