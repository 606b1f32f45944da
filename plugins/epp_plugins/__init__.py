"""The plugins that ship: one file each, grouped by extension point."""
