"""Files and printed scores of a morph."""

import json
from pathlib import Path

from sdft.apps.morph.frame_sequence import draw_comparison_strip
from sdft.apps.morph.video import can_write_mp4, write_frames, write_gif, write_mp4
from sdft.runs.files import atomic_write
from sdft.runs.terminal import print_text


def write_results(morpher, sequences, folder: Path, cfg, metric) -> None:
    """Write frames, videos, strip and scores, and print the scores."""
    first = next(iter(sequences.values()))
    scores = {name: sequence.compute_scores() for name, sequence in sequences.items()}
    limit = dict(zip(("PSNR first", "PSNR last"), morpher.compute_autoencoder_psnr(), strict=True))
    write_frames(first.frames, folder / "frames")
    write_gif(first.frames, folder / "morph.gif", cfg.fps)
    if can_write_mp4():
        write_mp4(first.frames, folder / "morph.mp4", cfg.fps)
    with atomic_write(folder / "strip.png") as file:
        draw_comparison_strip(sequences).save(file, format="PNG")
    report = {"perceptual": metric and metric.name, "autoencoder": limit, "scores": scores, "alphas": first.alphas}
    report |= {
        "distances": first.distances,
        "endpoint_distances": first.endpoint_distances,
        "images": list(cfg.images),
        "prompts": [image.caption for image in morpher.images],
    }
    with atomic_write(folder / "scores.json") as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if metric:
        print_text(
            f"distance   {metric.name}: PPL is the sum between consecutive images, PDV the variance between frames"
        )
    width = max(map(len, [*scores, "autoencoder"]))
    for name, row in {"autoencoder": limit, **scores}.items():
        print_text(f"scores     {name:<{width}}  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print_text(f"images     {folder}/morph.gif" + (f", {folder}/strip.png" if cfg.compare else ""))
