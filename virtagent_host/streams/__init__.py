"""Bulk data: between a client's file descriptors and the streams of a link."""
