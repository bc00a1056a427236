"""The commands that arlat-core adds."""

COMMANDS = {
    "runs": {"": ("list run directories", "arlat_core.listing:runs")},
    "plugins": {"": ("list plugins", "arlat_core.listing:plugins")},
}
