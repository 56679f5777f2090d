import subprocess
import sys

import pytest

from tests.conftest import environment

PROGRAM = """
import sys
from jaxlm.text.tensorflow_import import import_tensorflow
tf = import_tensorflow()
print({"keras", "sklearn", "matplotlib"} & set(sys.modules), "keras.src.optimizers" in sys.modules)
print(list(tf.data.Dataset.range(3).as_numpy_iterator()) == [0, 1, 2], tf.config.get_visible_devices("GPU"))
from tensorflow.keras.layers import Dense
print(tf.keras.layers.Dense is Dense, import_tensorflow() is tf)
"""


@pytest.mark.slow
def test_tensorflow_comes_without_keras_which_a_program_can_still_use():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["set() False", "True []", "True True"]
