"""Export of trained models: ONNX in fp32 and int8, benchmarks, and a web page that runs the model in the browser.

Every fp32 file is compared with PyTorch, and every int8 file with the fp32 file, before it is kept. This module imports
no torch, so that the memory of an ONNX session can be measured in a process without torch.
"""
