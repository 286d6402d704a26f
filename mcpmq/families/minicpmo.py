"""MiniCPM-o 2.6: what sees and reads is MiniCPM-V 2.6; what hears and speaks is handed on as it is."""

from dataclasses import replace

from mcpmq.families.minicpmv import MINICPM_V_2_6, version_of

LEFT_OUT = "images and text only: what hears and speaks is left out"

MINICPM_O_2_6 = replace(
    MINICPM_V_2_6,
    name="minicpm-o-2.6",
    published=("openbmb/MiniCPM-o-2_6",),
    recognises=lambda config: config.get("model_type") == "minicpmo" and version_of(config) == "2.6",
    llama_cpp_version=4,
    passed_through=(("audio", "apm"), ("audio", "audio_projection_layer"), ("speech", "tts")),
    caveats=(("gguf", LEFT_OUT), ("onnx", LEFT_OUT)),
)
