"""HTML, Markdown and terminal output of an experiment."""
