"""What every chapter's results and report are made of: typed figures with intervals, words for numbers, tables, figures and the page.

``figure`` and ``page`` need the ``report`` extra (matplotlib, jinja2); the rest needs nothing.
"""

from perturbjax.report.accounting import compared_entry as compared_entry
from perturbjax.report.accounting import comparison as comparison
from perturbjax.report.accounting import entry as entry
from perturbjax.report.schema import ComparedEntry as ComparedEntry
from perturbjax.report.schema import Comparison as Comparison
from perturbjax.report.schema import Entry as Entry
from perturbjax.report.schema import Headline as Headline
from perturbjax.report.schema import Source as Source
