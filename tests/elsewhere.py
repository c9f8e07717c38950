"""A device that is not there: tensors that say that they are on it, with their numbers on the processor.

Whatever mixes them with others fails, as it does on a GPU. Graphs are captured from fake tensors of that device. torch takes it for an
accelerator: it is registered by torch's own way to write one in Python.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from lightvlm_fx.compat import own_configs, pytree
from lightvlm_fx.ops.bodies import bodies

_setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere:0")
MIXING = {"copy_", "_to_copy", "index"}  # what may read from two devices: copies, and picks from it by numbers that the processor holds
PLAIN = 0  # of what scaled_dot_product_attention can be, what is made of plain operators


class Elsewhere(torch.Tensor):
    """A tensor of that device over one of the processor."""

    @staticmethod
    def __new__(cls, here):
        assert type(here) is torch.Tensor, f"{type(here)} is no plain tensor"
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=DEVICE,
            storage_size=here.untyped_storage().nbytes(),
        )  # fmt: skip

    def __init__(self, here):
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        return f"Elsewhere({self.here!r})"

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor that is elsewhere, outside of `with elsewhere(...)`")


class There(TorchDispatchMode):
    """While active, operators of tensors that are elsewhere run on the numbers that they hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there, name = any(isinstance(x, Elsewhere) for x in tensors), func.overloadpacket.__name__
        asked = kwargs.get("device")
        if active_fake_mode() is not None or any(isinstance(x, FakeTensor) for x in tensors) or not (there or asked == DEVICE):
            return func(*args, **kwargs)
        mixes = name in MIXING and (name != "index" or isinstance(args[0], Elsewhere))
        if there and not mixes and any(not isinstance(x, Elsewhere) and x.ndim for x in tensors):
            raise RuntimeError(f"{func} of tensors on {[str(x.device) for x in tensors]}")
        if func in bodies():
            with self:
                return bodies()[func](*args, **kwargs)
        if name == "_fused_sdp_choice":
            return PLAIN
        given = kwargs if asked is None else kwargs | {"device": "cpu"}
        out = func(*pytree.tree_map_only(Elsewhere, lambda x: x.here, args), **pytree.tree_map_only(Elsewhere, lambda x: x.here, given))
        if asked is not None and asked != DEVICE:
            return out
        if name == "copy_":
            return args[0]
        out = pytree.tree_map_only(torch.Tensor, Elsewhere, out)
        return out if asked is not None else return_and_correct_aliasing(func, args, kwargs, out)


def moved(module):
    """The module, with its parameters and buffers elsewhere."""
    for part in module.modules():
        for name, x in part._parameters.items():
            part._parameters[name] = None if x is None else nn.Parameter(Elsewhere(x.detach()), requires_grad=False)
        for name, x in part._buffers.items():
            part._buffers[name] = None if x is None else Elsewhere(x.detach())
    return module


def on_fakes(export):
    """`torch.export.export`, from fake tensors of the device in the place of those elsewhere; its weights are elsewhere again."""

    def exported(module, args, **options):
        if not any(isinstance(x, Elsewhere) for x in pytree.tree_leaves(args)):
            return export(module, args, **options)
        mode, real = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False), {}

        def fake(x):
            assert isinstance(x, Elsewhere), f"not on the device: {x}"
            with mode:
                out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
            out = nn.Parameter(out, requires_grad=False) if isinstance(x, nn.Parameter) else out
            real[id(out)] = (x, out)
            return out

        twin = own_configs(module)
        for part in twin.modules():
            for table in (part._parameters, part._buffers):
                table.update({name: fake(x) for name, x in table.items() if x is not None})
        with mode:
            program = export(twin, pytree.tree_map_only(torch.Tensor, fake, args), **options)
        for table in (program.state_dict, program.constants):
            table.update({name: real[id(x)][0] for name, x in table.items() if id(x) in real})
        return program

    return exported


def from_numbers(tensor):
    """`torch.tensor`, of lists of tensors too: it reads their numbers where no mode sees it."""
    return lambda data, **options: tensor(pytree.tree_map_only(Elsewhere, Elsewhere.tolist, data), **options)


@contextmanager
def elsewhere(monkeypatch):
    """Tensors that are elsewhere can be computed with, and graphs are captured for that device."""
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor moves what it made, by an operator that the mode sees
    try:
        with monkeypatch.context() as patch, There():
            patch.setattr(torch.export, "export", on_fakes(torch.export.export))
            patch.setattr(torch, "tensor", from_numbers(torch.tensor))
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
