"""The activation cache: what frozen layers make of a row, computed once in a fit."""
