"""MiniCPM-o 2.6: vision and language as in MiniCPM-V 2.6; audio and speech weights pass through unchanged."""

from dataclasses import replace

from mcpmq.families.minicpmv import MINICPM_V_2_6, version_of

NO_AUDIO_CAVEAT = "images and text only, without audio and speech"

MINICPM_O_2_6 = replace(
    MINICPM_V_2_6,
    name="minicpm-o-2.6",
    hub_ids=("openbmb/MiniCPM-o-2_6",),
    matches=lambda config: config.get("model_type") == "minicpmo" and version_of(config) == "2.6",
    minicpmv_version=4,
    passthrough=(("audio", "apm"), ("audio", "audio_projection_layer"), ("speech", "tts")),
    caveats=(("gguf", NO_AUDIO_CAVEAT), ("onnx", NO_AUDIO_CAVEAT)),
)
