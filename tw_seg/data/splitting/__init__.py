"""Splits of a data set: chosen so that groups stay together and classes are spread evenly, and written as files."""
