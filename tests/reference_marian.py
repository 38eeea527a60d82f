"""The same student by other people's code: transformers' Marian network with the recurrent unit in place of the
decoder's self-attention, no cache, and its own greedy search. Slow; what our network is held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.torch_models import torchaudio_beside_cpu_torch
from workers.marian_student import END, EPSILON, MOST_PLACES, UNKNOWN, Student


class WholeText(nn.Module):
    """SSRU over a whole text at once, by its definition."""

    def __init__(self, into: nn.Linear, forget: nn.Linear) -> None:
        super().__init__()
        self.into, self.forget = into, forget

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        x, f = self.into(hidden_states), torch.sigmoid(self.forget(hidden_states))
        cells = [torch.zeros_like(x[:, 0])]
        for at in range(x.shape[1]):
            cells.append(f[:, at] * cells[-1] + (1 - f[:, at]) * x[:, at])
        return torch.stack(cells[1:], 1).relu(), None


def reference(student: Student) -> Any:
    """A MarianMTModel with copies of the weights of `student`; one token more, which begins a text and fills up."""
    torchaudio_beside_cpu_torch()
    from transformers import MarianConfig, MarianMTModel

    vocabulary, width = student.embed.weight.shape
    layer = student.encoder[0]
    config = MarianConfig(
        vocab_size=vocabulary + 1,
        d_model=width,
        encoder_layers=len(student.encoder),
        decoder_layers=len(student.decoder),
        encoder_attention_heads=layer.attention.heads,
        decoder_attention_heads=layer.attention.heads,
        encoder_ffn_dim=layer.wide.fc1.out_features,
        decoder_ffn_dim=layer.wide.fc1.out_features,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=MOST_PLACES,
        pad_token_id=vocabulary,
        decoder_start_token_id=vocabulary,
        eos_token_id=END,
        bos_token_id=None,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    own = {"model.shared.weight": torch.cat([student.embed.weight, torch.zeros(1, width)])}
    own["final_logits_bias"] = torch.cat([student.bias, torch.tensor([float("-inf")])])[None]
    own["final_logits_bias"][0, UNKNOWN] = float("-inf")
    for side, layers in (("encoder", student.encoder), ("decoder", student.decoder)):
        own[f"model.{side}.embed_positions.weight"] = student.places
        for i, layer in enumerate(layers):
            name = f"model.{side}.layers.{i}"
            if side == "decoder":
                recurrent = layer.recurrent
                model.model.decoder.layers[i].self_attn = WholeText(recurrent.into, recurrent.forget)
                own |= _named(f"{name}.self_attn_layer_norm", recurrent.norm)
            attention = "self_attn" if side == "encoder" else "encoder_attn"
            for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o")):
                own |= _named(f"{name}.{attention}.{theirs}", getattr(layer.attention, ours))
            own |= _named(f"{name}.{attention}_layer_norm", layer.attention.norm)
            own |= _named(f"{name}.fc1", layer.wide.fc1) | _named(f"{name}.fc2", layer.wide.fc2)
            own |= _named(f"{name}.final_layer_norm", layer.wide.norm)
    result = model.load_state_dict(own, strict=False)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    lacks = {k for k in result.missing_keys if ".self_attn.into." not in k and ".self_attn.forget." not in k}
    assert lacks <= tied and not result.unexpected_keys, result
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPSILON
    return model.eval()


def _named(name: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def greedy(model: Any, source: list[int], most: int) -> list[int]:
    """Tokens of the text for one sentence, without the last."""
    ids = torch.tensor([source])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=1,
            do_sample=False,
            use_cache=False,
            max_new_tokens=most,
        )
    tokens = out[0, 1:].tolist()
    return tokens[: tokens.index(END)] if END in tokens else tokens
