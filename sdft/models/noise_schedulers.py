"""Samplers by the field's short names, each with the noise levels and the prediction type of the one that a checkpoint ships."""

from inspect import signature

KARRAS_SIGMAS = {"use_karras_sigmas": True}
DPMPP = {"algorithm_type": "dpmsolver++", "solver_order": 2}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
SCHEDULERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", DPMPP),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", DPMPP | KARRAS_SIGMAS),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", SDE),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", SDE | KARRAS_SIGMAS),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
    "lcm": ("LCMScheduler", {}),
}
SIGMA_SCHEDULE_KEYS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)  # of the steps; a name says which is meant
# what Stable Diffusion was trained with, where a checkpoint does not say otherwise; clipping is for pixels, not for latents
LATENT_DEFAULTS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
# what tools that read the `parameters` of a picture call them
SCHEDULER_TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_karras": "DPM++ 2M SDE Karras",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
}


def check_scheduler_name(name: str | None, key: str = "scheduler") -> None:
    """`ValueError` with the list for a name that is none of them; None is the one that the checkpoint ships."""
    if name is not None and name not in SCHEDULERS:
        raise ValueError(f"{key}={name}: choose one of {', '.join(SCHEDULERS)}, or null for the model's own")


def build_scheduler(name: str, shipped):
    """The sampler called `name` for the model that ships `shipped`; `ValueError` for one that cannot start from pure noise."""
    import diffusers

    check_scheduler_name(name)
    kind, own = getattr(diffusers, SCHEDULERS[name][0]), SCHEDULERS[name][1]
    takes = signature(kind).parameters
    if shipped.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        able = [
            n
            for n, (k, _) in SCHEDULERS.items()
            if "rescale_betas_zero_snr" in signature(getattr(diffusers, k)).parameters
        ]
        raise ValueError(
            f"scheduler={name}: cannot start from the pure noise of a model at zero terminal SNR; choose {', '.join(able)}"
        )
    said = set(shipped.config) - set(shipped.config.get("_use_default_values", []))
    unsaid = {key: value for key, value in LATENT_DEFAULTS.items() if key not in said}
    changes = unsaid | dict.fromkeys(SIGMA_SCHEDULE_KEYS, False) | own
    return kind.from_config(shipped.config, **{key: value for key, value in changes.items() if key in takes})


def find_scheduler_name(config: dict) -> str:
    """The short name of a sampler that is set like this, or the name of its class."""
    import diffusers

    kind = str(config.get("_class_name"))
    takes = signature(getattr(diffusers, kind)).parameters if kind in {one for one, _ in SCHEDULERS.values()} else {}
    for name, (one, own) in SCHEDULERS.items():
        expected = own | {key: own.get(key, False) for key in SIGMA_SCHEDULE_KEYS if key in takes}
        if one == kind and all(config.get(key) == value for key, value in expected.items()):
            return name
    return kind
