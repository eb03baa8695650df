"""The greetings, without any network code."""

import os
from collections import Counter

WORDS = {"de": "Guten Tag", "en": "Hello", "fr": "Bonjour", "ja": "こんにちは"}


class UnknownLanguage(ValueError):
    """There are no words in the language asked for."""


class Greeter:
    """Greets, and counts how often each name was greeted."""

    def __init__(self):
        self.counts = Counter()

    def greet(self, name=None, language="en"):
        name = name or os.environ.get("GREETING_DEFAULT_NAME", "world")
        if language not in WORDS:
            raise UnknownLanguage(f"no words in '{language}'; there are {', '.join(sorted(WORDS))}")
        self.counts[name] += 1
        again = " again" if self.counts[name] > 1 else ""
        return f"{WORDS[language]}, {name}{again}!"
