"""Store a fixed network's weights and activations in 8 bits with onnxruntime, and see what that costs.

You will see the test accuracy and the size of the ONNX file in float32 and in int8, and of the checkpoint of the fixed
network, which stores no filters. `efx.plain` writes the filters out as weights, so that the quantiser finds them.
"""

import logging
from pathlib import Path

import timm
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.training.data import load_dataset

logging.disable(logging.WARNING)
torch.manual_seed(0)
data = load_dataset("mnist5k", seed=0)
model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
efx.convert(model, seed=0)
loader = DataLoader(data.train, 64, shuffle=True, drop_last=True)
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=len(loader))
for images, digits in loader:
    cross_entropy(model(images), digits).backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
torch.save(model.state_dict(), "fixed.pt")


class Calibration(CalibrationDataReader):
    """Shows the quantiser real images, from whose activations it takes the scales."""

    def __init__(self) -> None:
        self.batches = ({"x": x.numpy()} for x, _ in DataLoader(torch.utils.data.Subset(data.train, range(512)), 64))

    def get_next(self) -> dict | None:
        return next(self.batches, None)


options = {"input_names": ["x"], "dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
torch.onnx.export(efx.plain(model), (data.test.tensors[0][:2],), "float32.onnx", verbose=False, **options)
quant_pre_process("float32.onnx", "prepared.onnx")  # BatchNorm goes into the weights
quantize_static("prepared.onnx", "int8.onnx", Calibration(), quant_format=QuantFormat.QDQ, per_channel=True)
images, digits = data.test.tensors
for name in ("float32", "int8"):
    (logits,) = InferenceSession(f"{name}.onnx").run(None, {"x": images.numpy()})
    right = (torch.from_numpy(logits).argmax(1) == digits).float().mean()
    print(f"{name:8} {right:.1%} of test digits right, {Path(f'{name}.onnx').stat().st_size / 1e3:,.0f} kB")
print(f"fixed.pt {Path('fixed.pt').stat().st_size / 1e3:,.0f} kB")
