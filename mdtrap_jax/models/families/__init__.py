"""The families of vision-language models: sizes, statistics, prompts, tokenizers."""
