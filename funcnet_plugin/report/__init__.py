"""Shows an atlas as one page of HTML that needs no network."""

from funcnet_plugin.report.page import write_report

__all__ = ["write_report"]
