"""Other CPU runtimes, on the same random weights: one file per runtime, listed in ``registry``.

float weights -> ``onnx_file`` -> ``onnx_runtime`` | ``openvino_runtime``; -> ``torch_dynamic``; -> ``ctranslate``

A peer is first prepared into the folder of the weights, which may take a minute and happens in a process of its own
(``prepare_process``), and then loaded from there as its users would. Loading imports the peer's runtime and NumPy, no
torch of others: what a peer's own process takes is measured, too. Only preparing imports more, in its functions.
"""

ONNX_FILE = "model.onnx"
"""The exported model, beside the float weights."""
