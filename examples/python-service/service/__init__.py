"""Greetings over HTTP, in a choice of languages, with a memory of who was greeted."""
