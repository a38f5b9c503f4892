"""What people see while a stage works: lines, tables and progress. Torch-free."""

from dit.console.output import Cell, Progress, cell_text, console, progress, progress_shown_by, say, table

__all__ = ["Cell", "Progress", "cell_text", "console", "progress", "progress_shown_by", "say", "table"]
