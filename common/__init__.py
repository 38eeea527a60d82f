"""What every Swapscribe process shares: the table of processes, messages, wire, settings, backlog reader, feed client."""
