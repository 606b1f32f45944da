"""A prefix index in Redis or Valkey that pickers share, beside each one's own."""
