"""Profile handlers decide which profiles run and whose endpoint answers."""
