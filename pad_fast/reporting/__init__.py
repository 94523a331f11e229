"""A run as a person reads it: pages, pictures, tables and comparisons. Reads run folders, computes nothing new.

Imported by the pipeline and the command line.
"""
