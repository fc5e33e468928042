"""Text prompts from class names."""

from collections.abc import Sequence

DEFAULT_TEMPLATE = "a photo of a {}."


def make_prompts(class_names: Sequence[str], template: str = DEFAULT_TEMPLATE) -> list[str]:
  """Puts every class name into the template, underscores read as spaces.

  Args:
    class_names: `C` names.
    template: Text with one or more `{}` where the name goes.

  Returns:
    `C` prompts.

  Raises:
    ValueError: If the template has no `{}`.

  >>> make_prompts(["Sea_or_Lake"])
  ['a photo of a Sea or Lake.']
  """
  if "{}" not in template:
    raise ValueError(
      f"The prompt template {template!r} has no {{}} for the class name, so all classes would "
      f"get the same text. Write it like {DEFAULT_TEMPLATE!r}."
    )
  # Not str.format: other braces, in the template or in a name, are ordinary text.
  return [template.replace("{}", name.replace("_", " ")) for name in class_names]
