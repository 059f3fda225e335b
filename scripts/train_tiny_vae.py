"""Train the VAE of tiny-sd: 32 x 32 images to 4 x 8 x 8 latents (Rombach et al., 2022, without the discriminator).

The training data are digits in random colours, every style, and crops of scikit-learn's two photographs: as for the original
autoencoder, more diverse than those of the diffusion model.
"""

import sys

import torch
import torch.nn.functional as F

from sdft.data.digits import IMAGE_SIZE, INK_PAPER_PAIRS, INKS, PAPERS, STYLES, draw_ink, load_strokes
from sdft.models.embedded import TINY_SD


def load_photographs() -> list[torch.Tensor]:
    """The photographs `china` and `flower` at two scales, `[3, h, w]` in 0..1."""
    from sklearn.datasets import load_sample_images

    images = [torch.tensor(image).permute(2, 0, 1)[None] / 255 for image in load_sample_images().images]
    return [F.interpolate(image, scale_factor=s, mode="area")[0] for image in images for s in (0.25, 0.125)]


def draw_batch(count: int, photos, coverage) -> torch.Tensor:
    """A training batch `[count, 3, 32, 32]`, -1..1: five eighths recoloured digits, a quarter styles, an eighth photographs."""
    batch = []
    for slot, row in enumerate(torch.randint(len(coverage), (count,))):
        stroke = torch.roll(coverage[row], tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2))
        if slot % 8 < 5:
            batch.append(recolor_stroke(stroke))
        elif slot % 8 < 7:
            draw_style, _ = list(STYLES.values())[int(torch.randint(len(STYLES), ()))]
            batch.append(draw_style(stroke[None])[0])
        else:
            photo = photos[int(torch.randint(len(photos), ()))]
            top, left = (int(torch.randint(side - IMAGE_SIZE + 1, ())) for side in photo.shape[1:])
            batch.append(photo[:, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE])
    return torch.stack(batch) * 2 - 1


def recolor_stroke(stroke: torch.Tensor) -> torch.Tensor:
    """Draw a stroke in jittered inks and papers, or (30 %) in two random colours."""
    if torch.rand(()) < 0.3:
        return draw_ink(stroke, *torch.rand(2, 3))
    ink_name, paper_name = INK_PAPER_PAIRS[int(torch.randint(len(INK_PAPER_PAIRS), ()))]
    jitter = torch.randn(2, 3) * 0.05
    return draw_ink(
        stroke, torch.tensor(INKS[ink_name]) + jitter[0], torch.tensor(PAPERS[paper_name]) + jitter[1]
    ).clamp(0, 1)


def train_vae(steps: int = 1500, batch: int = 24) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=IMAGE_SIZE,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-3, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    photos, (coverage, _) = load_photographs(), load_strokes()
    for step in range(steps):
        images = draw_batch(batch, photos, coverage)
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
        images = draw_batch(256, photos, coverage)
        latents = vae.encode(images).latent_dist.mean
        error = F.mse_loss(vae.decode(latents).sample, images, reduction="none").mean((1, 2, 3))
        digits = torch.arange(256) % 8 < 7
    vae.register_to_config(scaling_factor=round(1 / latents[digits].std().item(), 4))
    psnr = f"PSNR of digits {compute_psnr(error[digits]):.1f} dB, photographs {compute_psnr(error[~digits]):.1f} dB"
    print(f"{psnr}; std {latents.std():.3f}")
    vae.half().save_pretrained(TINY_SD / "vae")


def compute_psnr(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for images in -1..1."""
    return (10 * torch.log10(4 / error)).mean().item()


if __name__ == "__main__":
    train_vae(*map(int, sys.argv[1:]))
