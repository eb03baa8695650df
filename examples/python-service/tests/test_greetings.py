import os
import unittest
from unittest.mock import patch

from service.greetings import Greeter, UnknownLanguage


class GreeterTest(unittest.TestCase):
    def test_each_language_has_its_words(self):
        self.assertEqual(Greeter().greet("Ada"), "Hello, Ada!")
        self.assertEqual(Greeter().greet("Ada", "ja"), "こんにちは, Ada!")

    def test_who_was_greeted_before_is_greeted_again(self):
        greeter = Greeter()
        greeter.greet("Ada")
        self.assertEqual(greeter.greet("Ada", "fr"), "Bonjour, Ada again!")
        self.assertEqual(greeter.greet("Grace"), "Hello, Grace!")

    def test_the_default_name_comes_from_the_environment(self):
        with patch.dict(os.environ, {"GREETING_DEFAULT_NAME": "you"}):
            self.assertEqual(Greeter().greet(), "Hello, you!")

    def test_an_unknown_language_is_refused_and_not_counted(self):
        greeter = Greeter()
        with self.assertRaisesRegex(UnknownLanguage, "no words in 'xx'"):
            greeter.greet("Ada", "xx")
        self.assertEqual(greeter.counts["Ada"], 0)
