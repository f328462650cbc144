"""Other people's software, tried with S3T: `python -m tests.ecosystem` runs every case and writes docs/ecosystem.md."""
