"""Snapshots: tensors as bytes under their digest, in a folder, a shared folder or a bucket."""
