"""Which text encoders a method trains: `method.text_encoder`."""

from collections.abc import Sequence

TextEncoderChoice = bool | list[str] | None


def check_text_encoder_choice(choice: TextEncoderChoice) -> None:
    """`ValueError` unless `choice` is true, false, null or a list of names."""
    if (
        choice is not None
        and not isinstance(choice, bool)
        and (isinstance(choice, str) or not is_list_of_names(choice))
    ):
        raise ValueError(
            f"method.text_encoder={choice}: choose true (all), false, null, or a list of text encoders, such as [clip_l]"
        )


def is_list_of_names(choice) -> bool:
    return isinstance(choice, Sequence) and all(isinstance(name, str) for name in choice)


def choose_text_encoders(model, choice: TextEncoderChoice, default: bool) -> list[str]:
    """The names of the text encoders to train, `default` standing for null; `ValueError` for one that the model lacks."""
    names = list(model.text_encoders)
    choice = default if choice is None else choice
    if isinstance(choice, bool):
        return names if choice else []
    if unknown := [name for name in choice if name not in names]:
        raise ValueError(
            f"method.text_encoder={list(choice)}: {model.name} has no {unknown[0]}; choose from {', '.join(names)}"
        )
    return [name for name in names if name in choice]
