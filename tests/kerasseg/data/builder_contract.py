"""tfds' own checks of a builder, on a release that is made for the test and taken away with it.

It stands before `tfds.testing.DatasetBuilderTestCase` among the bases of a test class.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import tensorflow_datasets as tfds


class BuilderContract:
    """A subclass says, as attributes: DATASET_CLASS, SPLITS with the numbers of images, and make."""

    make: Callable[[Path], None]
    """Writes the release into a folder."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = cls.folder.name
        cls.make(Path(cls.folder.name))
        cls.tiny = mock.patch.multiple(cls.DATASET_CLASS, COUNTS=cls.SPLITS, require_published=mock.Mock())
        cls.tiny.start()
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.tiny.stop()
        cls.folder.cleanup()

    def test_registered(self):  # tfds' own looks into all of its modules, for seconds
        self.assertIs(tfds.builder_cls(self.DATASET_CLASS.name), self.DATASET_CLASS)

    def test_session(self, *args, **kwargs):
        return super().test_session(*args, **kwargs)

    test_session.__test__ = False  # a helper of TensorFlow's
