"""Reports of runs: tables for the terminal, JSON for machines, self-contained pages to look at."""

from training.report.comparison import comparison_page, read_run
from training.report.files import write_file, write_results
from training.report.page import html_page
from training.report.tables import METHOD_NAMES, aligned, percent_cell, print_table, table

__all__ = [
    'METHOD_NAMES',
    'aligned',
    'comparison_page',
    'html_page',
    'percent_cell',
    'print_table',
    'read_run',
    'table',
    'write_file',
    'write_results',
]
