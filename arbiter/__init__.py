"""The arbiter grants byte-budget leases on the GPU. It arrives with the first worker that needs a lease."""
