"""Importing models from the hub into folders that every command reads: find, convert, prove, move."""
