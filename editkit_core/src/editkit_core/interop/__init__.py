"""To and from other tools' formats: PEFT adapters, llama.cpp adapters.

A weight patch of rank r is a LoRA of rank r. What a format cannot hold is refused with the reason;
nothing is lost silently. Importing this package is cheap.
"""
