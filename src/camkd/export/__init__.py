"""From a run folder to a device: ONNX in fp32 and int8, what that costs, and a page that runs the model in a browser.

Only what was verified is written. Without torch at import, as the measured processes have none.
"""
