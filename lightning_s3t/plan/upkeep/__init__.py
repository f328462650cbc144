"""A store that lasts: requests come at a rate, and a fit now and then builds again what they revoked."""
