"""Everything between a trained model and a mask: model directory, codecs, predictor."""
