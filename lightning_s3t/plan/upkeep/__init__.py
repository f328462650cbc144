"""Long-term operation of a store: requests arrive at a rate, and periodic fits rebuild what they revoked."""
