"""Shared by all Hugging Face formats: module names, shards, config.json, model card."""
