"""The output of commands: lines, tables and progress. Torch-free.

Example:
    with progress("train mini-S/2", total=1500, unit="steps") as bar:
        bar.advance(1, loss=0.12)
    table(["Variant", "Gflops"], [["mini-S/2", 0.00046]])
"""

from dit.console.output import Cell, Progress, cell_text, console, progress, progress_shown_by, say, table

__all__ = ["Cell", "Progress", "cell_text", "console", "progress", "progress_shown_by", "say", "table"]
