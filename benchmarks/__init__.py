"""What the picker costs: `make bench`. Every figure is CPU time of the picker's process beside a reference in the same run."""
