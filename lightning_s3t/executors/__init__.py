"""Executors build the units of a plan: one after another, in separate processes, on several devices."""
