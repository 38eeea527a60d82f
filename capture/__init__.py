"""Capture writes every sample of a source to the durable backlog. It knows no model and waits for no reader."""
