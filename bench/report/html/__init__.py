"""The ledger as one page that needs nothing else: ``report.html``, with tables to sort, curves to read and every record inside."""

from bench.report.html.page import html_page

__all__ = ["html_page"]
