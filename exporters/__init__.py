"""Targets: one file each, and how their graphs are written. A model's vision stage is made here, too; the rest of it in exporting/."""
