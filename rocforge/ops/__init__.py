"""Operations on ordinary arrays: NumPy arrays run the NumPy code, CuPy arrays the kernels.

Importing the package gives QuantizedArray its operators.
"""

from rocforge.ops import indexing as indexing
from rocforge.ops import protocols as protocols
from rocforge.ops import quantized as quantized
