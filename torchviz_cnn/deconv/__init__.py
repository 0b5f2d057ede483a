"""The deconvnet of Zeiler and Fergus, unpooling with switches, and networks compared."""
