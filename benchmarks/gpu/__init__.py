"""The stages of gpu_evidence.py, a file each, and what they share."""
