"""The smallest LightningCLI apps, as Lightning's documentation writes them: none of them knows of S3T."""
