"""Train the first stage of tiny-sd: 32 x 32 pictures to 4 x 8 x 8 latents (Rombach et al., 2022, without the critic).

It sees digits in any colours, every style, and crops of scikit-learn's two photographs: as with the real autoencoder,
the first stage knows more pictures than the diffusion model.
"""

import sys

import torch
import torch.nn.functional as F

from sdft.data.digits import INKS, PAIRS, PAPERS, SIZE, STYLES, ink, strokes
from sdft.models.embedded import TINY_SD


def photographs() -> list[torch.Tensor]:
    """China and flower at two scales, 0..1 `[3, height, width]`."""
    from sklearn.datasets import load_sample_images

    full = [torch.tensor(image).permute(2, 0, 1)[None] / 255 for image in load_sample_images().images]
    return [F.interpolate(image, scale_factor=s, mode="area")[0] for image in full for s in (0.25, 0.125)]


def pictures(count: int, photos, coverage) -> torch.Tensor:
    """A training batch `[count, 3, 32, 32]`, -1..1: five eighths recoloured digits, a quarter styles, an eighth photographs."""
    batch = []
    for slot, row in enumerate(torch.randint(len(coverage), (count,))):
        stroke = torch.roll(coverage[row], tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2))
        if slot % 8 < 5:
            batch.append(recoloured(stroke))
        elif slot % 8 < 7:
            paint, _ = list(STYLES.values())[int(torch.randint(len(STYLES), ()))]
            batch.append(paint(stroke[None])[0])
        else:
            photo = photos[int(torch.randint(len(photos), ()))]
            top, left = (int(torch.randint(side - SIZE + 1, ())) for side in photo.shape[1:])
            batch.append(photo[:, top : top + SIZE, left : left + SIZE])
    return torch.stack(batch) * 2 - 1


def recoloured(stroke: torch.Tensor) -> torch.Tensor:
    """Mostly the world's inks on its papers, shaken; sometimes any two colours."""
    if torch.rand(()) < 0.3:
        return ink(stroke, *torch.rand(2, 3))
    ink_name, paper_name = PAIRS[int(torch.randint(len(PAIRS), ()))]
    shake = torch.randn(2, 3) * 0.05
    return ink(stroke, torch.tensor(INKS[ink_name]) + shake[0], torch.tensor(PAPERS[paper_name]) + shake[1]).clamp(0, 1)


def main(steps: int = 1500, batch: int = 24) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=SIZE,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-3, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    photos, (coverage, _) = photographs(), strokes()
    for step in range(steps):
        images = pictures(batch, photos, coverage)
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.mse_loss(decoded, images) + 0.1 * F.l1_loss(decoded, images) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{step + 1}/{steps}  loss {loss.item():.4f}", flush=True)

    vae.eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        images = pictures(256, photos, coverage)
        latents = vae.encode(images).latent_dist.mean
        error = F.mse_loss(vae.decode(latents).sample, images, reduction="none").mean((1, 2, 3))
        digits = torch.arange(256) % 8 < 7
    vae.register_to_config(scaling_factor=round(1 / latents[digits].std().item(), 4))
    print(
        f"PSNR of digits {psnr(error[digits]):.1f} dB, photographs {psnr(error[~digits]):.1f} dB; std {latents.std():.3f}"
    )
    vae.half().save_pretrained(TINY_SD / "vae")


def psnr(error: torch.Tensor) -> float:
    """Peak signal to noise in dB, for pictures in -1..1."""
    return (10 * torch.log10(4 / error)).mean().item()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
