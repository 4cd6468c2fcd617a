"""Each served model as an ML backend of Label Studio, at `/label-studio/NAME`."""
