"""Phones in time: alignments, tables and TextGrids, read into one form."""
