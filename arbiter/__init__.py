"""The arbiter grants byte-budget leases on the GPU: ledger and policy are pure, `__main__` carries them out."""
