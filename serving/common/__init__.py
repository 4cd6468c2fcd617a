"""What the other rooms and the other packages use too: commands, files, images, the format of an artifact."""
