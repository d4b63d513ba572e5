"""The figure: one file, one box. fcclip.py is the spine that calls them in order."""
