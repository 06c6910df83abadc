"""Other people's CPU runtimes, on the same random weights: one file for each family, listed in ``registry``.

float weights -> ``onnx_file`` -> ``onnx_runtime`` | ``openvino_runtime``; -> ``torch_dynamic``; -> ``ctranslate``

A peer is prepared once into the folder of the weights, which may take a minute and happens in a process of its own
(``prepare_process``), and then loaded from there as its users load it.
"""
