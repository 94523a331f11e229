"""Helpers that several folders of tests share; nothing here is collected."""
