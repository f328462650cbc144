"""Which units are built when and where: one after the other, in processes of their own, on several devices."""
