"""Tests of tar files of photos, and the server that they are read from."""
