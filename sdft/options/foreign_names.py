"""Option names of kohya's sd-scripts, diffusers, Transformers, peft, Lightning and A1111, by the option that does the same."""

# Option -> names elsewhere. `a|b`: the first that the program has. With `=`: a complete override instead of a name.
EQUIVALENTS = {
    # optimization
    "lr": "learning_rate unet_lr unet_learning_rate base_learning_rate base_lr",
    "text_encoder_lr": "text_lr te_lr text_encoder_lr1 text_encoder_learning_rate embedding_learning_rate",
    "steps": "max_train_steps max_steps train_steps num_train_steps num_steps total_steps iterations max_iterations",
    "epochs": "num_train_epochs max_train_epochs max_epochs num_epochs n_epochs epoch",
    "batch_size": "train_batch_size per_device_train_batch_size batch bs micro_batch_size",
    "gradient_accumulation_steps": "accumulate_grad_batches grad_accumulation_steps gradient_accumulation accum_steps",
    "max_grad_norm": "gradient_clip_val clip_grad_norm gradient_clipping grad_clip clip_grad",
    "warmup": "lr_warmup_steps warmup_steps warmup_ratio lr_warmup num_warmup_steps lr_warmup_ratio",
    "schedule": "lr_scheduler lr_scheduler_type lr_schedule learning_rate_scheduler scheduler_type",
    "schedule.num_cycles": "lr_num_cycles lr_scheduler_num_cycles lr_scheduler_args lr_scheduler_kwargs",
    "schedule.power": "lr_power lr_scheduler_power",
    "schedule.min_lr_ratio": "lr_scheduler_min_lr_ratio min_lr lr_end min_learning_rate",
    "optimizer": "optimizer_type optim optimizer_name",
    "optimizer=adamw8bit": "use_8bit_adam use_8bit_adamw",
    "optimizer._target_=lion_pytorch.Lion": "use_lion_optimizer",
    "optimizer=prodigy": "use_prodigy",
    "optimizer.weight_decay": "adam_weight_decay",
    "optimizer.eps": "adam_epsilon",
    "'optimizer.betas=[0.9,0.999]'": "adam_beta1 adam_beta2",
    "optimizer.OPTION=VALUE": "optimizer_args optim_args optimizer_kwargs",
    "ema=0.9999": "use_ema",
    "ema": "ema_decay ema_rate",
    "on_nan": "skip_nan nan_policy",
    # precision and devices
    "precision": "mixed_precision weight_dtype torch_dtype train_dtype",
    "precision=fp16": "fp16 full_fp16 half",
    "precision=bf16": "bf16",
    "precision=bf16_weights": "full_bf16 stochastic_rounding bf16_stochastic_round",
    "precision=fp32": "no_half fp32",
    "precision.tf32": "allow_tf32 tf32",
    "fused_backward": "fused_backward_pass fused_optimizer_groups fused_back_pass optimizer_in_bwd",
    "compile=regional": "torch_compile compile_model dynamo_backend",
    "offload_blocks=0.5": "blocks_to_swap layer_offload_fraction enable_group_offload musubi_blocks_to_swap",
    "gradient_checkpointing=offload": "cpu_offload_checkpointing enable_activation_offloading activation_offloading",
    "devices": "num_processes n_gpu num_gpus gpus gpu_ids nproc_per_node",
    "num_nodes": "num_machines nnodes",
    "accelerator": "device",
    "strategy": "distributed_type",
    "strategy=fsdp": "fsdp use_fsdp deepspeed",
    "workers": "dataloader_num_workers max_data_loader_n_workers num_workers n_workers",
    # model
    "model.name": "pretrained_model_name_or_path pretrained_model model_name_or_path base_model base_model_name_or_path model_id "
    "model_path model_name ckpt ckpt_path sd_model_checkpoint",
    "model.revision": "revision",
    "model.variant": "variant",
    "model.prediction_type": "prediction_type",
    "model.clip_skip": "clip_skip clip_stop_at_last_layers",
    "model.vae": "vae vae_path pretrained_vae_model_name_or_path",
    "model=sd21": "v2 v_parameterization",
    "model.zero_terminal_snr": "zero_terminal_snr rescale_betas_zero_snr rescale_betas",
    "prompt_chunks=3": "max_token_length tokenizer_max_length",
    # method
    "rank": "network_dim lora_r lora_rank lora_dim network_rank r dim network_linear_dim linear_dim",
    "alpha": "network_alpha lora_alpha linear_alpha network_linear_alpha",
    "method.dropout": "network_dropout lora_dropout rank_dropout module_dropout",
    "method.unet_targets": "target_modules lora_target_modules lora_layers unet_target_modules conv_dim conv_alpha",
    "method.text_encoder": "train_text_encoder text_encoder_train train_te",
    "method.text_encoder=false": "network_train_unet_only",
    "method.adapter_type": "algo lora_type network_algo lycoris_type adapter",
    "method.use_dora": "use_dora dora_wd dora",
    "method.use_rslora": "use_rslora rs_lora rslora",
    "method.init_lora_weights": "init_lora_weights init_weights",
    "method.loraplus_lr_ratio": "loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_lr_embedding",
    "method": "network_module training_method train_method finetune_method",
    "resume": "resume_from_checkpoint resume_from network_weights resume_path save_state",
    "method=dreambooth_lora instance_prompt=… class_prompt=…": "with_prior_preservation prior_preservation",
    "class_path": "class_data_dir reg_data_dir regularization_data_dir reg_dir class_dir",
    "prior_loss_weight": "prior_weight prior_preservation_weight",
    "num_vectors": "num_vectors_per_token num_new_tokens_per_abstraction",
    "initializer_token": "init_word initializer init_token",
    "placeholder_token": "token_string token_abstraction new_token",
    "method=textual_inversion": "learnable_property use_object_template use_style_template",
    "guidance_range": "w_min w_max",
    "solver_steps": "num_ddim_timesteps",
    "objective.huber_c": "huber_c huber_scale",
    "objective.huber_delta": "huber_delta",
    # loss
    "loss": "loss_type loss_fn",
    "weighting": "weighting_scheme loss_weighting snr_weighting",
    "weighting=min_snr snr_gamma=5": "min_snr_gamma min_snr",
    "weighting=debiased": "debiased_estimation_loss debiased",
    "noise_offset": "offset_noise noise_offset_random_strength",
    "input_perturbation": "ip_noise_gamma",
    "pyramid_noise": "multires_noise_discount multires_noise_iterations pyramid_noise_discount",
    "'timestep_sampling.range=[0,1]'": "min_timestep max_timestep",
    "timestep_sampling.distribution": "timestep_distribution timestep_bias_strategy",
    "unmasked_weight": "masked_loss conditioning_data_dir alpha_mask unmasked_probability mask_weight",
    # data
    "data.path|data=folder data.path=VALUE": "train_data_dir instance_data_dir data_dir dataset_dir image_dir images_dir "
    "data_root image_folder dataset_path train_data instance_data_root dataset_config in_json data_folder",
    "data.name|data=hub data.name=VALUE": "dataset_name hub_dataset",
    "data.config": "dataset_config_name",
    "data.caption_column": "caption_column text_column",
    "data.image_column": "image_column",
    "data.limit": "max_train_samples",
    "caption_template": "caption_prefix caption_suffix prompt_template caption_strategy",
    "shuffle_tags": "shuffle_caption shuffle_captions tag_shuffling",
    "keep_tags": "keep_tokens keep_tokens_separator",
    "caption_dropout": "caption_dropout_rate cond_dropout proportion_empty_prompts uncond_p unconditional_prob ucg_rate",
    "flip": "random_flip flip_aug hflip horizontal_flip",
    "crop=center": "center_crop",
    "crop=random": "random_crop",
    "crop=buckets": "enable_bucket aspect_ratio_bucketing use_bucket bucketing multi_aspect_training",
    "max_upscale=1": "bucket_no_upscale",
    "cache": "cache_latents cache_latents_to_disk cache_text_encoder_outputs latent_caching vae_cache",
    "resolution": "image_size img_size size train_resolution image_resolution res",
    "validation_split": "val_split validation_ratio",
    # logging, samples and checkpoints
    "name": "output_name run_name wandb_run_name log_tracker_name experiment_name",
    "folder|to|hydra.run.dir": "output_dir outdir out_dir output_path save_dir default_root_dir output_folder out output",
    "logger": "report_to log_with tracker",
    "logger.project": "tracker_project_name wandb_project project_name project",
    "logger.folder": "logging_dir log_dir",
    "log_every": "logging_steps log_every_n_steps logging_first_step print_every",
    "save_every": "checkpointing_steps save_steps save_every_n_steps save_every_n_epochs save_freq checkpointing_epochs",
    "checkpoints_total_limit": "save_total_limit save_last_n_steps save_last_n_epochs save_top_k max_checkpoints",
    "prompts": "validation_prompt validation_prompts sample_prompts prompt prompts_file sample_prompt prompt_file",
    "sampling.images|images": "num_validation_images num_images_per_prompt num_images n_samples n_images num_samples",
    "sample_every": "sample_every_n_steps sample_every_n_epochs validation_epochs sample_steps sampling_steps_interval",
    "validate_every": "eval_steps validation_steps val_check_interval check_val_every_n_epoch validate_every_n_steps",
    "evaluate_every": "eval_every evaluation_steps",
    "checkpoint_metric": "metric_for_best_model monitor load_best_model_at_end",
    "patience": "early_stopping_patience early_stopping",
    "sampling.steps|steps": "num_inference_steps inference_steps sampling_steps ddim_steps validation_inference_steps",
    "sampling.guidance_scale|guidance_scale": "cfg_scale cfg guidance validation_guidance unconditional_guidance_scale",
    "sampling.scheduler|scheduler": "sampler sample_sampler sampler_name validation_scheduler noise_scheduler",
    "sampling.negative_prompt|negative_prompt": "neg_prompt n_prompt validation_negative_prompt uncond_prompt",
    "sampling.batch_size|batch_size": "sample_batch_size eval_batch_size per_device_eval_batch_size",
    "seed": "random_seed manual_seed global_seed",
    # other programs
    "adapters|adapter": "lora lora_weights lora_path lora_paths loras lora_file lora_model_name unet_lora models",
    "weights": "ratios lora_weight_scale multipliers",
    "strength|adapter_scales": "lora_scale network_mul lora_strength cross_attention_kwargs denoising_strength",
    "images": "image input init_image input_image init_img",
    "rank|energy": "new_rank",
    "energy": "dynamic_param sv_ratio sv_fro",
    "dtype": "save_precision save_to_precision",
    "base": "model_org",
    "tuned": "model_tuned",
    "sdft publish run=FOLDER to=USER/NAME push=true": "push_to_hub hub_model_id hub_repo_id huggingface_repo_id",
}
# Reason -> names elsewhere of what has no counterpart.
WITHOUT_EQUIVALENT = {
    "attention always runs in torch's fused kernels": (
        "xformers sdpa mem_eff_attn enable_xformers_memory_efficient_attention use_xformers flash_attention attention_slicing"
    ),
    "the VAE always computes in fp32, and chooses its batch size": "vae_batch_size no_half_vae",
    "the model's own tokenizer is used": "tokenizer_name tokenizer",
    "the run folder has the adapter as .safetensors for diffusers and kohya": "save_model_as save_as_full_pipeline",
    "captions are read from NAME.txt": "caption_extension caption_extention",
    "options cannot hold secrets; log in with wandb login or hf auth login": "wandb_api_key hub_token huggingface_token token",
    "one epoch visits each image once; increase epochs": "num_repeats repeats dataset_repeats",
    "bucket sizes follow from resolution": "min_bucket_reso max_bucket_reso bucket_reso_steps",
    "gradients are always set to None": "set_grads_to_none",
    "each caption is used whole": "caption_tag_dropout_rate caption_dropout_every_n_epochs token_warmup_min token_warmup_step",
    "no such augmentation": "color_aug face_crop_aug_range",
    "not supported": (
        "scale_weight_norms adaptive_noise_scale fp8_base dream_training lowram highvram block_lr base_weights conv_block_dims "
        "prior_generation_precision image_interpolation_mode weighted_captions full_determinism "
        "train_norm modules_to_save rank_pattern alpha_pattern lora_bias text_encoder_use_attention_mask "
        "persistent_data_loader_workers"
    ),
}  # fmt: skip
VALUES = {  # values elsewhere -> ours, by option
    "precision": {"no": "fp32", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"},
    "schedule": {"constant_with_warmup": "constant", "cosine_annealing": "cosine"},
    "method": {"networks.lora": "lora", "lycoris.kohya": "lora", "full": "sft"},
    "logger": {"all": "wandb", "null": "none"},
}
# Names whose values have another unit or form than ours.
OTHER_VALUES = """
    save_every_n_epochs sample_every_n_epochs validation_epochs checkpointing_epochs save_last_n_epochs save_last_n_steps
    multires_noise_iterations min_lr lr_end min_learning_rate lr_scheduler_args lr_scheduler_kwargs conv_dim conv_alpha gpus
    gpu_ids caption_prefix caption_suffix keep_tokens_separator dataset_config in_json w_min w_max min_timestep max_timestep
    save_state logging_first_step snr_weighting masked_loss alpha_mask cross_attention_kwargs load_best_model_at_end algo
    early_stopping init_lora_weights loraplus_lr_embedding denoising_strength adapter network_weights
"""
OPTION_BY_NAME = {name: option for option, names in EQUIVALENTS.items() for name in names.split()}
REASON_BY_NAME = {name: reason for reason, names in WITHOUT_EQUIVALENT.items() for name in names.split()}
