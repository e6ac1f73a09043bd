"""A text from a model in training, to see what the loss does not say."""

from __future__ import annotations

from pathlib import Path

import sentencepiece
import torch

from pyllama2c.train.model import Llama


@torch.no_grad()
def sample_text(
    model: Llama, tokenizer: str | Path, max_tokens: int, *, temperature: float = 0.8, seed: int = 0
) -> str:
    """Let the model tell a story from BOS on, until BOS, EOS, ``max_tokens`` or its context ends.

    Plain and slow: the whole text goes through the model again for each token.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    bos, eos = processor.bos_id(), processor.eos_id()
    generator = torch.Generator().manual_seed(seed)
    device = model.tok_embeddings.weight.device
    was_training = model.training
    model.eval()
    ids = [bos]
    while len(ids) <= min(max_tokens, model.config.max_seq_len - 1):
        logits = model(torch.tensor([ids], device=device))[0, -1].float().cpu()
        chances = torch.softmax(logits / temperature, dim=-1)
        token = int(torch.multinomial(chances, 1, generator=generator))
        if token in (bos, eos):
            break
        ids.append(token)
    model.train(was_training)
    text: str = processor.decode(ids[1:])
    return text
