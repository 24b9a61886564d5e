"""Stores of running and finished results: complete or not there, and resumable."""
