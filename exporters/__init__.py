"""Targets: one file each. Imports core and passes; nothing there imports this."""
