"""What the picker costs: `make bench`. CPU time of its process, beside a reference picker in the same run."""
