"""V-JEPA's encoder (first generation, arXiv 2404.08471) for transformers; Apache-2.0.

Written by `vjepa-fast export --to transformers` beside the weights. Needs torch and transformers:

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    features = model(**AutoVideoProcessor.from_pretrained(FOLDER)(video, return_tensors="pt"))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class VJEPAConfig(PretrainedConfig):
    """The encoder's shape, in the names of transformers' VJEPA2Config.

    Args:
        patch_size, tubelet_size: pixels and frames of a token.
        crop_size, frames_per_clip: of the longest clip.
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio: size of the transformer.
        uniform_power: how the position table's channels are split: a third for each of time, height
            and width, else a half, a quarter and a quarter.
    """

    model_type = "vjepa"

    def __init__(
        self,
        patch_size: int = 16,
        tubelet_size: int = 2,
        crop_size: int = 224,
        frames_per_clip: int = 16,
        in_chans: int = 3,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
        uniform_power: bool = True,
        initializer_range: float = 0.02,
        **kwargs,
    ) -> None:
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.crop_size = crop_size
        self.frames_per_clip = frames_per_clip
        self.in_chans = in_chans
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_ratio = mlp_ratio
        self.layer_norm_eps = layer_norm_eps
        self.uniform_power = uniform_power
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


def _sines_and_cosines(width: int, places: Tensor) -> Tensor:
    """[N, width]: sines, then cosines, of the places at width / 2 geometric frequencies."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_table(width: int, grid: tuple[int, int, int], uniform_power: bool) -> Tensor:
    """fp32 [T'H'W', width], raster order, time slowest."""
    third = -(-width // 6) * 2  # a third, rounded up to pairs
    widths = (third,) * 3 if uniform_power else (width // 2, width // 4, width // 4)
    places = torch.meshgrid(*(torch.arange(n, device="cpu") for n in grid), indexing="ij")
    parts = [_sines_and_cosines(w, p.reshape(-1)) for w, p in zip(widths, places, strict=True)]
    return torch.cat(parts, dim=1)[:, :width].float()


class VJEPAPatchEmbeddings(nn.Module):
    """Tubelets [B, C, T, H, W] → [B, N, D]."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.hidden_size, size, stride=size)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class VJEPAEmbeddings(nn.Module):
    """Tokens with their positions, [B, T, C, H, W] → [B, N, D]."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embeddings = VJEPAPatchEmbeddings(config)
        self._table: Tensor | None = None

    def _positions(self, video: Tensor) -> Tensor:
        config = self.config
        frames, _, height, width = video.shape[1:]
        side, longest = config.crop_size, config.frames_per_clip
        if (height, width) != (side, side) or not config.tubelet_size <= frames <= longest:
            raise ValueError(
                f"pixel_values_videos: found clips of {frames} x {height} x {width}, expected "
                f"{config.tubelet_size} to {longest} frames of {side} x {side}, the size of the "
                "position table; prepare them with the video processor of this folder"
            )
        side //= config.patch_size
        if self._table is None or self._table.device != video.device:
            grid = (longest // config.tubelet_size, side, side)
            table = position_table(config.hidden_size, grid, config.uniform_power)
            self._table = table.to(video.device)
        # The first frames of the table are those of a shorter clip.
        return self._table[: frames // config.tubelet_size * side * side]

    def forward(self, video: Tensor) -> Tensor:
        positions = self._positions(video)
        tokens = self.patch_embeddings(video.transpose(1, 2))
        return (tokens.float() + positions).to(tokens.dtype)


class VJEPAAttention(nn.Module):
    """Self-attention of all tokens, [B, N, D] → [B, N, D]."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VJEPAMLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        hidden = round(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, hidden)
        self.fc2 = nn.Linear(hidden, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VJEPALayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VJEPAAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VJEPAMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VJEPAEncoder(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        self.embeddings = VJEPAEmbeddings(config)
        self.layer = nn.ModuleList(VJEPALayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        states = [self.embeddings(video)]
        for layer in self.layer:
            states.append(layer(states[-1]))
        return self.layernorm(states[-1]), states


class VJEPAModel(PreTrainedModel):
    """The encoder of V-JEPA; features of every token of a clip."""

    config_class = VJEPAConfig
    base_model_prefix = "vjepa"
    main_input_name = "pixel_values_videos"
    _no_split_modules = ["VJEPALayer"]  # noqa: RUF012

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__(config)
        self.encoder = VJEPAEncoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        pixel_values_videos: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput | tuple:
        """Features of every token.

        Args:
            pixel_values_videos: normalized [B, T, C, H, W], from VJEPA2VideoProcessor.
            output_hidden_states: also return the input of the first layer and the output of each.
            return_dict: false returns a tuple.

        Returns:
            last_hidden_state [B, N, D] after the final norm, tokens in raster order, time slowest.

        Raises:
            ValueError: clips of another size than the position table's, or longer ones.
        """
        last, states = self.encoder(pixel_values_videos)
        wanted = output_hidden_states
        if wanted is None:
            wanted = self.config.output_hidden_states
        output = BaseModelOutput(
            last_hidden_state=last, hidden_states=tuple(states) if wanted else None
        )
        return output.to_tuple() if return_dict is False else output
