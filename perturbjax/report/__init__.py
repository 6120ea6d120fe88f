"""results.json -> report.html, plots and the table for the terminal.

``write_report`` needs the ``report`` extra (jinja2, matplotlib), imported when it is called; the rest needs nothing.
"""

from perturbjax.report.headline import Headline as Headline
from perturbjax.report.headline import headline as headline
from perturbjax.report.page import write_report as write_report
from perturbjax.report.table import results_table as results_table
