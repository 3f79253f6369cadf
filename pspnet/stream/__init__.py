"""From a camera to masks: sources, the pipeline, sinks. Nothing here needs torch before a model is loaded."""
