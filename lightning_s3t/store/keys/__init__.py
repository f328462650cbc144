"""Keys: hashed identities, codes and signatures that only a key's holder can make, and rotation."""
