"""Noise schedulers by their usual short names, with the noise levels and prediction type of the model's own scheduler."""

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
# spacing of the steps; off unless the short name sets it
SIGMA_SCHEDULE_KEYS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
# Stable Diffusion's settings, for configurations that do not set them; clipping is for pixels, not for latents
LATENT_DEFAULTS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
# names in the `parameters` text of PNG files
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
    """`ValueError` for an unknown name; None means the model's own scheduler."""
    if name is not None and name not in SCHEDULERS:
        raise ValueError(f"{key}={name}: choose one of {', '.join(SCHEDULERS)}, or null for the model's own")


def build_scheduler(name: str, shipped):
    """Scheduler `name` for a model with the scheduler `shipped`; `ValueError` if it lacks the zero terminal SNR of `shipped`."""
    import diffusers

    check_scheduler_name(name)
    class_name, settings = SCHEDULERS[name]
    scheduler_class = getattr(diffusers, class_name)
    parameters = signature(scheduler_class).parameters
    if shipped.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in parameters:
        supported = [
            other
            for other, (other_class, _) in SCHEDULERS.items()
            if "rescale_betas_zero_snr" in signature(getattr(diffusers, other_class)).parameters
        ]
        raise ValueError(
            f"scheduler={name}: does not support the model's zero terminal SNR; choose one of {', '.join(supported)}"
        )
    explicit = set(shipped.config) - set(shipped.config.get("_use_default_values", []))
    defaults = {key: value for key, value in LATENT_DEFAULTS.items() if key not in explicit}
    changes = defaults | dict.fromkeys(SIGMA_SCHEDULE_KEYS, False) | settings
    return scheduler_class.from_config(
        shipped.config, **{key: value for key, value in changes.items() if key in parameters}
    )


def find_scheduler_name(config: dict) -> str:
    """Short name of a scheduler configuration, or its class name if none matches."""
    import diffusers

    config_class = str(config.get("_class_name"))
    is_supported = config_class in {class_name for class_name, _ in SCHEDULERS.values()}
    parameters = signature(getattr(diffusers, config_class)).parameters if is_supported else {}
    for name, (class_name, settings) in SCHEDULERS.items():
        expected = settings | {key: settings.get(key, False) for key in SIGMA_SCHEDULE_KEYS if key in parameters}
        if class_name == config_class and all(config.get(key) == value for key, value in expected.items()):
            return name
    return config_class


def change_prediction_type(scheduler, prediction_type: str, zero_terminal_snr: bool):
    """The scheduler with another prediction type; with zero terminal SNR (Lin et al., 2024) the last timestep is pure noise.

    DDIM replaces schedulers that do not support zero terminal SNR, such as PNDM.
    """
    from diffusers import DDIMScheduler

    scheduler_class, changes = type(scheduler), {"prediction_type": prediction_type}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in signature(scheduler_class).parameters:
            scheduler_class = DDIMScheduler
    return scheduler_class.from_config(scheduler.config, **changes)
