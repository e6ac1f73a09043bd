"""Run tiny llama2.c-style Llama models inside your own Python process."""
