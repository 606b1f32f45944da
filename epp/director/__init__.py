"""The order of steps for one request, from its bytes to a decision, and its response phase."""
