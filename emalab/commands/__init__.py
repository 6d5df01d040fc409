"""What `emalab COMMAND` does: one module per command, imported when it is asked for, so that help comes at once."""
