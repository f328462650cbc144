"""What every floor speaks of: subjects, cells, units and the reach rule, guarantees, manifest, events and receipts."""
