"""What all Hugging Face artifacts share: names, shards, config.json, model card."""
