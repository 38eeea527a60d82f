"""What every Swapscribe process shares: the table, messages, wire, settings, backlog, feed client, launcher, CLI."""
