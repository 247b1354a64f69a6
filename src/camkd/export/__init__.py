"""Export of trained models: ONNX in fp32 and int8, benchmarks, and a web page that runs the model in the browser.

Every exported file is compared with PyTorch before it is kept. This package imports no torch, so that the memory of an
ONNX session can be measured without it.
"""
