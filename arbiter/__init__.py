"""The arbiter grants byte-budget leases on the GPU. Its ledger is here; the process that carries it out is to come."""
